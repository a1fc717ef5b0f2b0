//! A file as `ls -l` shows it: what clients print for their own `ls -l`.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const DAY: i64 = 86_400;
/// Older than this, and the year is shown instead of the time, as ls(1) does.
const HALF_A_YEAR: i64 = 365 * DAY / 2;

/// What users and groups are called here.
#[derive(Debug, Default)]
pub(super) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Of `/etc/passwd` and `/etc/group`; who is in neither has a number only.
    pub(super) fn read() -> Self {
        let read = |path| {
            let text = std::fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(&text)
                .lines()
                .filter_map(|line| {
                    // Both have name:password:number first.
                    let mut fields = line.split(':');
                    let name = fields.next()?;
                    Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
                })
                .collect()
        };
        Self {
            users: read("/etc/passwd"),
            groups: read("/etc/group"),
        }
    }
}

/// The line for a file of this name, at this time.
pub(super) fn line(name: &[u8], metadata: &Metadata, names: &Names, now: i64) -> Vec<u8> {
    let called = |names: &HashMap<u32, String>, number: u32| {
        names
            .get(&number)
            .cloned()
            .unwrap_or_else(|| number.to_string())
    };
    let mut line = format!(
        "{} {:>4} {:<8} {:<8} {:>8} {} ",
        mode(metadata.mode()),
        metadata.nlink(),
        called(&names.users, metadata.uid()),
        called(&names.groups, metadata.gid()),
        metadata.size(),
        when(metadata.mtime(), now),
    )
    .into_bytes();
    line.extend_from_slice(name);
    line
}

fn mode(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o060_000 => 'b',
        0o020_000 => 'c',
        0o010_000 => 'p',
        0o140_000 => 's',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// In UTC: the server does not know the user's own time.
fn when(seconds: i64, now: i64) -> String {
    let (year, month, day) = civil(seconds.div_euclid(DAY));
    let month = MONTHS[month];
    if (now - seconds).abs() > HALF_A_YEAR {
        return format!("{month} {day:>2}  {year:>4}");
    }
    let minutes = seconds.rem_euclid(DAY) / 60;
    format!("{month} {day:>2} {:02}:{:02}", minutes / 60, minutes % 60)
}

/// Year, month from 0 and day of a number of days since 1970, in the Gregorian calendar (H. Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`).
fn civil(days: i64) -> (i64, usize, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Years begin in March here.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let january = usize::try_from((month + 2) % 12).unwrap_or_default();
    let year = year_of_era + era * 400 + i64::from(january < 2);
    (year, january, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let now = 1_795_000_000;
        for (seconds, text) in [
            (0, "Jan  1  1970"),
            (951_782_400, "Feb 29  2000"),
            (-1, "Dec 31  1969"),
            (4_107_542_400, "Mar  1  2100"),
            (now, "Nov 18 11:06"),
        ] {
            assert_eq!(when(seconds, now), text, "{seconds}");
        }
    }

    #[test]
    fn modes_are_those_of_ls() {
        for (bits, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o041_777, "drwxrwxrwt"),
            (0o104_755, "-rwsr-xr-x"),
            (0o102_644, "-rw-r-Sr--"),
            (0o120_777, "lrwxrwxrwx"),
        ] {
            assert_eq!(mode(bits), text);
        }
    }
}
