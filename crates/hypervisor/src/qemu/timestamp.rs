//! How fast the host's timestamp counter runs. An emulated guest reads that counter (QEMU, `cpu_get_host_ticks`), and
//! finds its speed by comparing it with an emulated timer, which is late on a busy host: it then gives the counter up,
//! keeps time by ticks, loses some, and is woken by each of them, 250 times a second, for as long as it lives. Told, it
//! need not compare.

use std::path::Path;

/// Where the counter is what the host itself keeps time by, and its speed is known: kHz. `None` where it is not certain.
pub(super) fn frequency() -> Option<u32> {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    // A speed that is changed is not that of the counter.
    if !cfg!(target_arch = "x86_64") || Path::new("/sys/devices/system/cpu/cpu0/cpufreq").exists() {
        return None;
    }
    parse_frequency(
        &text("/proc/cpuinfo"),
        &text("/sys/devices/system/clocksource/clocksource0/available_clocksource"),
    )
}

/// From /proc/cpuinfo (Linux, arch/x86/kernel/cpu/proc.c): without a frequency driver and without the counters of
/// actual performance, `cpu MHz` is that of the timestamp counter.
fn parse_frequency(cpuinfo: &str, clocksources: &str) -> Option<u32> {
    let value = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    let flags: Vec<&str> = value("flags")?.split(' ').collect();
    let is_steady = flags.contains(&"constant_tsc") && flags.contains(&"nonstop_tsc");
    let is_trusted = clocksources.split_whitespace().any(|name| name == "tsc");
    if !is_steady || !is_trusted || flags.contains(&"aperfmperf") {
        return None;
    }
    let (mega, kilo) = value("cpu MHz")?.split_once('.')?;
    if kilo.len() != 3 {
        return None;
    }
    let frequency = mega.parse::<u32>().ok()?.checked_mul(1000)? + kilo.parse::<u32>().ok()?;
    // What no machine has is no answer.
    (100_000..=10_000_000)
        .contains(&frequency)
        .then_some(frequency)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpuinfo(flags: &str, mhz: &str) -> String {
        let one = format!(
            "processor\t: 0\nmodel name\t: AMD EPYC\ncpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n\n"
        );
        one.repeat(2)
    }

    #[test]
    fn a_steady_counter_that_the_host_trusts_has_the_speed_that_the_kernel_names() {
        let steady = cpuinfo("fpu tsc constant_tsc nonstop_tsc", "2596.118");
        assert_eq!(
            parse_frequency(&steady, "tsc hpet acpi_pm\n"),
            Some(2_596_118)
        );
        assert_eq!(parse_frequency(&steady, "kvm-clock tsc"), Some(2_596_118));
        assert_eq!(parse_frequency(&steady, "hpet acpi_pm"), None);
    }

    #[test]
    fn a_speed_that_may_be_another_is_none() {
        for (flags, mhz) in [
            ("tsc", "2596.118"),
            ("tsc constant_tsc", "2596.118"),
            ("constant_tsc nonstop_tsc aperfmperf", "2596.118"),
            ("constant_tsc nonstop_tsc", "2596"),
            ("constant_tsc nonstop_tsc", "2596.1"),
            ("constant_tsc nonstop_tsc", "0.000"),
            ("constant_tsc nonstop_tsc", "99999999.000"),
            ("constant_tsc nonstop_tsc", "fast.100"),
        ] {
            assert_eq!(
                parse_frequency(&cpuinfo(flags, mhz), "tsc"),
                None,
                "{flags}: {mhz}"
            );
        }
        assert_eq!(parse_frequency("", "tsc"), None);
    }
}
