//! PID 1 of a Warren microVM; see `warren_guest::agent`.

fn main() {
    #[cfg(target_os = "linux")]
    std::process::exit(warren_guest::agent::run());
    #[cfg(not(target_os = "linux"))]
    std::process::exit(2);
}
