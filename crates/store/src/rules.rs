//! What every implementation refuses alike, and how a prefix becomes a range. Pure.

use warren_core::PortError;
use warren_core::ports::store::{Guard, Transaction, Write};

/// The longest key.
pub const MAX_KEY_BYTES: usize = 1024;
/// The largest value.
pub const MAX_VALUE_BYTES: usize = 4 << 20;
/// The most guards, and the most writes, of one transaction.
pub const MAX_TRANSACTION_ITEMS: usize = 4096;
/// The most bytes of values in one transaction.
pub const MAX_TRANSACTION_BYTES: usize = 32 << 20;

fn check_key(key: &str) -> Result<(), PortError> {
    // A NUL would be legal in SQLite's TEXT, but its own string functions stop at it.
    if key.is_empty() || key.len() > MAX_KEY_BYTES || key.contains('\0') {
        return Err(PortError::invalid(
            "store_key_invalid",
            format!("a key has 1 to {MAX_KEY_BYTES} bytes and no NUL character"),
        ));
    }
    Ok(())
}

/// Bounds everything in a transaction.
pub(crate) fn check_transaction(transaction: &Transaction) -> Result<(), PortError> {
    if transaction.guards.len() > MAX_TRANSACTION_ITEMS
        || transaction.writes.len() > MAX_TRANSACTION_ITEMS
    {
        return Err(PortError::invalid(
            "store_transaction_too_large",
            format!("a transaction has at most {MAX_TRANSACTION_ITEMS} guards and as many writes"),
        ));
    }
    for guard in &transaction.guards {
        match guard {
            Guard::Absent(key) | Guard::At(key, _) | Guard::Present(key) => check_key(key)?,
        }
    }
    let mut bytes = 0usize;
    for write in &transaction.writes {
        match write {
            Write::Put(key, value) => {
                check_key(key)?;
                if value.len() > MAX_VALUE_BYTES {
                    return Err(PortError::invalid(
                        "store_value_too_large",
                        format!("a value has at most {MAX_VALUE_BYTES} bytes"),
                    ));
                }
                bytes += value.len();
            }
            Write::Delete(key) => check_key(key)?,
        }
    }
    if bytes > MAX_TRANSACTION_BYTES {
        return Err(PortError::invalid(
            "store_transaction_too_large",
            format!("a transaction has at most {MAX_TRANSACTION_BYTES} bytes of values"),
        ));
    }
    Ok(())
}

/// A listing of nothing would look like the end of all pages.
pub(crate) fn check_limit(limit: usize) -> Result<(), PortError> {
    if limit == 0 {
        return Err(PortError::invalid(
            "store_limit_zero",
            "a listing must ask for at least one record",
        ));
    }
    Ok(())
}

/// The keys of a page: from `low` (inclusive) to `high` (exclusive; `None`: no end).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KeyRange {
    pub(crate) low: String,
    pub(crate) high: Option<String>,
}

impl KeyRange {
    /// The keys that start with `prefix` and come after `after`.
    pub(crate) fn new(prefix: &str, after: Option<&str>) -> Self {
        let low = match after {
            // The smallest string greater than `after`.
            Some(after) if after >= prefix => format!("{after}\0"),
            Some(_) | None => prefix.to_owned(),
        };
        KeyRange {
            low,
            high: end_of_prefix(prefix),
        }
    }

    /// No key can lie in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.high.as_ref().is_some_and(|high| *high <= self.low)
    }
}

/// The smallest string greater than every string with `prefix`. UTF-8 sorts as its code points do, so
/// raising the last character is enough; a last character that cannot be raised is dropped.
fn end_of_prefix(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // Ranges of `char` step over the surrogates.
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    #[test]
    fn prefixes_end_where_the_last_character_is_raised() {
        assert_eq!(end_of_prefix("a/"), Some("a0".to_owned()));
        assert_eq!(end_of_prefix("a\u{10ffff}"), Some("b".to_owned()));
        assert_eq!(end_of_prefix("\u{d7ff}"), Some("\u{e000}".to_owned()));
        assert_eq!(end_of_prefix("\u{10ffff}"), None);
        assert_eq!(end_of_prefix(""), None);
    }

    proptest! {
        #[test]
        fn a_range_holds_exactly_the_keys_with_the_prefix_after_the_key(
            key in "[a%_\u{7f}\u{80}\u{10ffff}]{0,4}",
            prefix in "[a%_\u{7f}\u{80}\u{10ffff}]{0,3}",
            after in "[a%_\u{7f}\u{80}\u{10ffff}]{0,4}",
            bounded in any::<bool>(),
        ) {
            let after = bounded.then_some(after.as_str());
            let range = KeyRange::new(&prefix, after);
            let within = key >= range.low && range.high.as_ref().is_none_or(|high| key < *high);
            let expected =
                key.starts_with(&prefix) && after.is_none_or(|after| key.as_str() > after);
            prop_assert_eq!(within, expected);
        }
    }
}
