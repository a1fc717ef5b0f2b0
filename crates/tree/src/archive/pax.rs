//! Records of extended headers: `LENGTH KEY=VALUE\n`, where the length counts itself.

use super::{ArchiveError, Modified};

/// Adds a record.
pub(super) fn push(into: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + digits(length) {
        length = rest + digits(length);
    }
    into.extend_from_slice(length.to_string().as_bytes());
    into.push(b' ');
    into.extend_from_slice(key);
    into.push(b'=');
    into.extend_from_slice(value);
    into.push(b'\n');
}

fn digits(mut number: usize) -> usize {
    let mut digits = 1;
    while number >= 10 {
        number /= 10;
        digits += 1;
    }
    digits
}

/// Calls `each` with key and value of every record.
pub(super) fn records<'a>(
    mut data: &'a [u8],
    mut each: impl FnMut(&'a [u8], &'a [u8]) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    const BAD: ArchiveError = ArchiveError::Malformed("an extended header's record");
    while !data.is_empty() {
        let space = data.iter().position(|byte| *byte == b' ').ok_or(BAD)?;
        let length = decimal(&data[..space]).ok_or(BAD)?;
        let length = usize::try_from(length).map_err(|_| BAD)?;
        if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
            return Err(BAD);
        }
        let record = &data[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
        each(&record[..equals], &record[equals + 1..])?;
        data = &data[length..];
    }
    Ok(())
}

/// Decimal digits and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A time as a decimal number of seconds.
pub(super) fn time_text(time: Modified) -> String {
    match (time.seconds, time.nanos) {
        (seconds, 0) => seconds.to_string(),
        (seconds @ 0.., nanos) => format!("{seconds}.{nanos:09}"),
        // Counted down from the second after.
        (seconds, nanos) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
    }
}

/// Reads [`time_text`]; what is finer than nanoseconds is dropped.
pub(super) fn parse_time(text: &[u8]) -> Option<Modified> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let mut nanos = 0;
    for at in 0..9 {
        let digit = match fraction.get(at) {
            Some(digit) if digit.is_ascii_digit() => u32::from(digit - b'0'),
            Some(_) => return None,
            None => 0,
        };
        nanos = nanos * 10 + digit;
    }
    Some(match (negative, nanos) {
        (false, nanos) => Modified { seconds, nanos },
        (true, 0) => Modified {
            seconds: -seconds,
            nanos,
        },
        (true, nanos) => Modified {
            seconds: -seconds - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}
