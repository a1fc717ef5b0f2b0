//! Named places at which a test makes the process die, as `kill -9` would, to see what is left of it.
//!
//! A place is a call of [`reached`] next to each recorded step of an operation: right after a name was written down,
//! and right after each effect in the outside world. In a build with debug assertions three variables act on it:
//!
//! | variable | what it does |
//! |---|---|
//! | `WARREN_CRASH_AT=NAME` or `NAME#N` | the process gets SIGKILL when it comes to `NAME` for the first (the `N`th) time |
//! | `WARREN_CRASH_ORDERS=FILE` | the same, as the file says at the moment; counted from when it began to say so |
//! | `WARREN_CRASH_TRACE=FILE` | every name reached is appended to `FILE`, a line each |
//! | `WARREN_CRASH_REPEAT=1` | every step is carried out a second time once it is done, as after a death right behind it |
//!
//! In a release build [`reached`] is nothing, and nothing is repeated. Names are `operation.step`, in the code as literals: the crash test finds
//! them all by reading the sources, so that a new one cannot be forgotten. Must never: do anything but die or write a
//! name down.

/// The variable that names the place to die at.
pub const CRASH_AT: &str = "WARREN_CRASH_AT";
/// The variable that names the file which names the place to die at.
pub const CRASH_ORDERS: &str = "WARREN_CRASH_ORDERS";
/// The variable that names the file to which every place reached is appended.
pub const CRASH_TRACE: &str = "WARREN_CRASH_TRACE";

/// The variable that makes every step be carried out twice.
pub const CRASH_REPEAT: &str = "WARREN_CRASH_REPEAT";

/// How often a step is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// As it should be.
    Once,
    /// As a test asks.
    Twice,
}

/// How often each step is to be carried out.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn times() -> Times {
    Times::Once
}

/// How often each step is to be carried out.
#[cfg(debug_assertions)]
pub fn times() -> Times {
    use std::sync::LazyLock;
    static TIMES: LazyLock<Times> = LazyLock::new(|| match std::env::var_os(CRASH_REPEAT) {
        Some(_) => Times::Twice,
        None => Times::Once,
    });
    *TIMES
}

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

/// Where to die, and how many times to come there before.
#[cfg(debug_assertions)]
#[derive(Debug, Default, PartialEq, Eq)]
struct Order {
    text: String,
    name: String,
    left: u64,
}

#[cfg(debug_assertions)]
impl Order {
    fn parse(text: &str) -> Self {
        let (name, times) = match text.trim().split_once('#') {
            Some((name, times)) => (name, times.parse().unwrap_or(1)),
            None => (text.trim(), 1),
        };
        Order {
            text: text.to_owned(),
            name: name.to_owned(),
            left: times,
        }
    }

    /// Whether the process dies now.
    fn is_due(&mut self, name: &str) -> bool {
        if self.name != name || self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.left == 0
    }
}

#[cfg(debug_assertions)]
struct Orders {
    /// Given at the start.
    first: std::sync::Mutex<Order>,
    /// As the file says.
    order: std::sync::Mutex<Order>,
    file: Option<std::path::PathBuf>,
    trace: Option<std::fs::File>,
}

#[cfg(debug_assertions)]
impl Orders {
    fn from_environment() -> Self {
        let first =
            std::env::var(CRASH_AT).map_or_else(|_| Order::default(), |text| Order::parse(&text));
        let trace = std::env::var_os(CRASH_TRACE).and_then(|path| {
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .ok()
        });
        Orders {
            first: std::sync::Mutex::new(first),
            order: std::sync::Mutex::default(),
            file: std::env::var_os(CRASH_ORDERS).map(Into::into),
            trace,
        }
    }

    fn carry_out(&self, name: &str) {
        use std::io::Write;
        if let Some(mut trace) = self.trace.as_ref() {
            // One write a line: lines of several threads do not mix.
            let _ = trace.write_all(format!("{name}\n").as_bytes());
        }
        let lock = std::sync::Mutex::lock;
        let mut first = lock(&self.first).unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut order = lock(&self.order).unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(file) = &self.file {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if text != order.text {
                *order = Order::parse(&text);
            }
        }
        if first.is_due(name) || order.is_due(name) {
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

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn the_nth_time_is_counted_and_other_places_are_not() {
        let mut order = Order::parse("a.b#2\n");
        assert!(!order.is_due("a.b") && !order.is_due("a.c"));
        assert!(order.is_due("a.b"));
        assert!(!order.is_due("a.b"), "once");
        assert!(Order::parse("a.b").is_due("a.b"));
        assert!(!Order::parse("").is_due("a.b"));
    }
}
