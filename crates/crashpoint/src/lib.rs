//! Named places at which a test makes the process die, as `kill -9` would, to see what is left of it.
//!
//! A place is a call of [`reached`] next to each recorded step of an operation: right after a name was written down,
//! and right after each effect in the outside world. In a build with debug assertions two variables act on it:
//!
//! | variable | what it does |
//! |---|---|
//! | `WARREN_CRASH_AT=NAME` or `NAME#N` | the process gets SIGKILL when it comes to `NAME` for the first (the `N`th) time |
//! | `WARREN_CRASH_TRACE=FILE` | every name reached is appended to `FILE`, a line each |
//!
//! In a release build [`reached`] is nothing. Names are `operation.step`, in the code as literals: the crash test finds
//! them all by reading the sources, so that a new one cannot be forgotten. Must never: do anything but die or write a
//! name down.

/// The variable that names the place to die at.
pub const CRASH_AT: &str = "WARREN_CRASH_AT";
/// The variable that names the file to which every place reached is appended.
pub const CRASH_TRACE: &str = "WARREN_CRASH_TRACE";

/// Tells that the process has come to the place `name`.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reached(_name: &str) {}

/// Tells that the process has come to the place `name`.
#[cfg(debug_assertions)]
pub fn reached(name: &str) {
    use std::sync::LazyLock;
    static ORDERS: LazyLock<Orders> = LazyLock::new(Orders::from_environment);
    ORDERS.carry_out(name);
}

#[cfg(debug_assertions)]
struct Orders {
    /// Where to die, and how many times to come there before.
    crash: Option<(String, std::sync::atomic::AtomicU64)>,
    trace: Option<std::fs::File>,
}

#[cfg(debug_assertions)]
impl Orders {
    fn from_environment() -> Self {
        let crash = std::env::var(CRASH_AT).ok().map(|wanted| {
            let (name, times) = match wanted.split_once('#') {
                Some((name, times)) => (name.to_owned(), times.parse().unwrap_or(1)),
                None => (wanted, 1),
            };
            (name, std::sync::atomic::AtomicU64::new(times))
        });
        let trace = std::env::var_os(CRASH_TRACE).and_then(|path| {
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .ok()
        });
        Orders { crash, trace }
    }

    fn carry_out(&self, name: &str) {
        use std::io::Write;
        use std::sync::atomic::Ordering;
        if let Some(mut trace) = self.trace.as_ref() {
            // One write a line: lines of several threads do not mix.
            let _ = trace.write_all(format!("{name}\n").as_bytes());
        }
        if let Some((wanted, left)) = &self.crash
            && wanted == name
            && left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            die();
        }
    }
}

#[cfg(debug_assertions)]
fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The signal is on its way.
    loop {
        std::thread::park();
    }
}
