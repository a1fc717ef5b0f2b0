//! One server, one instance, and orders where to die.

use super::operation::{Operation, State};
use crate::harness::{Build, Mode, Server, eventually, free_port};
use crate::upgrading::turn_back;
use rusqlite::{Connection, OpenFlags};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long it may take after a restart until all is as it should be.
const CONVERGES: u64 = 10;

/// What the instances are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Machines {
    Fake,
    Real,
}

impl Machines {
    pub(super) fn from_environment() -> Self {
        match std::env::var("WARREN_CRASH_MACHINES").as_deref() {
            Ok("real") => Machines::Real,
            _ => Machines::Fake,
        }
    }
}

pub(super) struct Stage {
    server: Server,
    /// Published by the instance, and free on the host.
    port: u16,
    /// Somebody else's hold on it.
    taken: Option<TcpListener>,
    numbers: std::cell::Cell<u32>,
    /// What operations come by, once they were traced.
    places: HashMap<Operation, Vec<String>>,
}

/// xorshift64*: the same seed gives the same choices.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }
}

impl Stage {
    pub(super) const ID: &'static str = "crashed";

    pub(super) fn set(mode: Mode, machines: Machines) -> Self {
        let environment: &[(&str, &str)] = match machines {
            Machines::Fake => &[("WARREN_HYPERVISORS", "[fake]")],
            Machines::Real => &[],
        };
        let mut stage = Stage {
            server: Server::start_build(Build::WithCrashPoints, mode, environment),
            port: free_port(),
            taken: None,
            numbers: std::cell::Cell::new(0),
            places: HashMap::new(),
        };
        // From here on with orders.
        stage.server.kill();
        std::fs::write(stage.orders(), "").unwrap();
        std::fs::write(stage.notes(), "").unwrap();
        for file in [stage.orders(), stage.notes()] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
            std::fs::set_permissions(file, mode).unwrap();
        }
        stage.launch(&[]);
        // The first of all makes what later ones find.
        stage.prepare(State::Running);
        stage.prepare(State::Gone);
        stage
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    fn orders(&self) -> PathBuf {
        self.server.data().join("crash-orders")
    }

    fn notes(&self) -> PathBuf {
        self.server.data().join("crash-trace")
    }

    fn order(&self, text: &str) {
        std::fs::write(self.orders(), text).unwrap();
    }

    /// Starts the server; with crash orders in the environment it may die before it is healthy.
    fn spawn(&mut self, environment: &[(&str, &str)]) {
        let (orders, notes) = (self.orders(), self.notes());
        let mut all = vec![
            ("WARREN_CRASH_ORDERS", orders.to_str().unwrap()),
            ("WARREN_CRASH_TRACE", notes.to_str().unwrap()),
        ];
        all.extend(environment);
        self.server.spawn(&all);
    }

    fn launch(&mut self, environment: &[(&str, &str)]) {
        self.spawn(environment);
        self.server.until_healthy();
    }

    /// Another one each time.
    pub(super) fn fresh(&self) -> u32 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    pub(super) fn create(&self) {
        let body = json!({
            "id": Self::ID, "name": Self::ID, "image": "busybox-web", "memory_mb": 128, "overlay_size": "16MB",
            "cmd": ["sleep", "1000"], "stop_grace_seconds": 1,
            "port_mappings": [{"host_port": self.port, "guest_port": 80}],
        });
        let key = format!("create-{}", self.fresh());
        let _ = self.server.try_api_with(
            "POST",
            "/instances",
            Some(body),
            &[("Idempotency-Key", &key)],
        );
    }

    fn state(&self) -> Option<State> {
        let (status, instance) = self
            .server
            .api("GET", &format!("/instances/{}", Self::ID), None);
        match (status, instance["state"].as_str()) {
            (404, _) => Some(State::Gone),
            (_, Some("Running")) => Some(State::Running),
            (_, Some("Paused")) => Some(State::Paused),
            (_, Some("Standby")) => Some(State::Standby),
            (_, Some("Stopped")) => Some(State::Stopped),
            _ => None,
        }
    }

    fn until(&self, what: &str, states: &[State]) -> State {
        eventually(what, CONVERGES, || {
            self.state().filter(|state| states.contains(state))
        })
    }

    /// Brings about what must be there before an operation.
    fn prepare(&mut self, wanted: State) {
        self.taken = None;
        for _ in 0..4 {
            let state = self.state();
            if state == Some(wanted) {
                return;
            }
            let ask = match (state, wanted) {
                (None, _) => Operation::Delete,
                (Some(_), State::Gone) => Operation::Delete,
                (Some(State::Gone), _) => Operation::Create,
                (Some(State::Running), State::Stopped) => Operation::Stop,
                (Some(State::Running), State::Standby) => Operation::Standby,
                (Some(State::Standby), State::Running | State::Paused) if self.is_whole() => {
                    Operation::Wake
                }
                (Some(State::Standby), _) => Operation::StopSaved,
                (Some(State::Running), _) => Operation::Pause,
                (Some(State::Paused), State::Stopped) => Operation::Stop,
                (Some(State::Paused), _) => Operation::Resume,
                (Some(State::Stopped), _) => Operation::Start,
            };
            let before = self.times("step.release-network.done");
            ask.ask(self);
            self.until("it is prepared", &[ask.after()]);
            if matches!(ask, Operation::Stop | Operation::Standby) {
                // It is Stopped as soon as its machine is gone.
                eventually("its network is gone", CONVERGES, || {
                    (self.times("step.release-network.done") > before).then_some(())
                });
            }
        }
        panic!("{wanted:?} cannot be brought about");
    }

    /// What has to be so around the operation itself.
    fn arrange(&mut self, operation: Operation) {
        if operation.before() == State::Paused {
            // Paused under this server: one that found it so would have to attach to its guest again.
            self.prepare(State::Running);
            self.until_quiet();
        }
        self.prepare(operation.before());
        match operation {
            Operation::CreateFirst => {
                self.server.terminate();
                self.server.ok(&["system", "clean"]);
                self.launch(&[]);
            }
            Operation::StartInVain => {
                self.taken = Some(TcpListener::bind(("0.0.0.0", self.port)).unwrap());
            }
            Operation::Sweep => self.leak(),
            Operation::WakeInVain => {
                std::fs::write(self.home().join("saved/manifest.json"), "no").unwrap()
            }
            Operation::Recover => {
                // The record is lost: the server makes a new one, and doubts it.
                self.server.terminate();
                for ending in ["", "-wal", "-shm"] {
                    let file = self.server.data().join(format!("store.db{ending}"));
                    let _ = std::fs::remove_file(file);
                }
                self.launch(&[]);
                self.until("what runs is shown", &[State::Running]);
            }
            Operation::Restore => {
                let backup = self.server.data().join("backup.db");
                let _ = std::fs::remove_file(&backup);
                self.server
                    .ok(&["system", "backup", backup.to_str().unwrap()]);
            }
            _ => {}
        }
        self.until_quiet();
        std::fs::write(self.notes(), "").unwrap();
    }

    /// How often the server came by a place since the notes were begun.
    fn times(&self, place: &str) -> usize {
        let notes = std::fs::read_to_string(self.notes()).unwrap();
        notes.lines().filter(|line| *line == place).count()
    }

    /// Until nothing is being done any more: what comes late of the preparation is not the operation's.
    fn until_quiet(&self) {
        let length = || std::fs::metadata(self.notes()).map_or(0, |notes| notes.len());
        let mut before = length();
        loop {
            std::thread::sleep(Duration::from_millis(25));
            let now = length();
            if now == before {
                return;
            }
            before = now;
        }
    }

    /// The instance's generation in the record, read past the server; `None` where it is not recorded.
    fn recorded(&self) -> Option<u64> {
        let store = Connection::open_with_flags(
            self.server.data().join("store.db"),
            OpenFlags::SQLITE_OPEN_READ_WRITE,
        );
        let value: Result<Vec<u8>, _> = store.and_then(|store| {
            store.busy_timeout(Duration::from_secs(5))?;
            let key = format!("instance/{}", Self::ID);
            let query = "SELECT value FROM records WHERE key = ?1";
            store.query_row(query, [key], |row| row.get(0))
        });
        let intent: serde_json::Value = serde_json::from_slice(&value.ok()?).unwrap();
        intent["generation"].as_u64()
    }

    /// What must be there once all is settled: what was asked for if it was recorded, else what was there before.
    fn promised(&self, operation: Operation, before: Option<u64>) -> Vec<State> {
        let changes = match (before, self.recorded()) {
            (Some(before), Some(now)) => now - before,
            (None, None) => 0,
            // Made, or gone to the last trace.
            (None, Some(_)) | (Some(_), None) => 1,
        };
        match (operation, changes) {
            // Two requests.
            (Operation::Restart, 1) => vec![State::Stopped],
            (_, 0) => vec![operation.before()],
            _ => vec![operation.after()],
        }
    }

    /// Whether what was saved can be restored: see [`Operation::WakeInVain`].
    fn is_whole(&self) -> bool {
        let manifest = std::fs::read(self.home().join("saved/manifest.json"));
        manifest.is_ok_and(|manifest| manifest.starts_with(b"{"))
    }

    fn home(&self) -> PathBuf {
        let homes = std::fs::read_dir(self.server.data().join("instances")).unwrap();
        homes.map(|home| home.unwrap().path()).next().unwrap()
    }

    /// A TAP that carries this installation's id and belongs to nothing.
    fn leak(&self) {
        let installation =
            std::fs::read_to_string(self.server.data().join("installation")).unwrap();
        let name = format!("wt{}leaked22", installation.trim());
        let made = Command::new("ip")
            .args(["tuntap", "add", "dev", &name, "mode", "tap"])
            .status()
            .unwrap();
        assert!(made.success());
    }

    /// The places that an operation comes by, and how often.
    pub(super) fn trace(&mut self, operation: Operation) -> BTreeMap<String, usize> {
        self.arrange(operation);
        if operation.is_a_start() || operation == Operation::Restore {
            self.server.kill();
        }
        self.perform(operation, &[]);
        self.settle(operation, &[operation.after()]);
        let notes = std::fs::read_to_string(self.notes()).unwrap();
        let mut counts = BTreeMap::new();
        for name in notes.lines() {
            *counts.entry(name.to_owned()).or_insert(0) += 1;
        }
        counts
    }

    /// Does the operation; gives whether the program that does it died at the order's place.
    fn perform(&mut self, operation: Operation, environment: &[(&str, &str)]) {
        match operation {
            Operation::Install => {
                for (made, kept) in self.made_once() {
                    if made.exists() {
                        std::fs::rename(made, kept).unwrap();
                    }
                }
                self.spawn(environment);
            }
            Operation::Restore => {
                let backup = self.server.data().join("backup.db");
                let mut restore = self
                    .server
                    .cli(&["system", "restore", backup.to_str().unwrap()]);
                let notes = self.notes();
                restore.env("WARREN_CRASH_TRACE", &notes);
                let _ = restore.envs(environment.iter().copied()).output().unwrap();
            }
            Operation::Upgrade => {
                turn_back(self.server.data());
                self.spawn(environment);
            }
            start if start.is_a_start() => self.spawn(environment),
            asked => asked.ask(self),
        }
    }

    /// What a server makes in an empty data directory and never again, and where it is put aside.
    fn made_once(&self) -> [(PathBuf, PathBuf); 2] {
        ["installation", "host-secret"].map(|name| {
            let made = self.server.data().join(name);
            let kept = made.with_extension("kept");
            (made, kept)
        })
    }

    /// Waits until all is as one of these states says, and record and host agree.
    fn settle(&mut self, operation: Operation, states: &[State]) {
        let started = Instant::now();
        match operation {
            Operation::Install => {
                self.server.until_healthy();
                // Back to the installation that the stage is of.
                self.server.kill();
                for (made, kept) in self.made_once() {
                    std::fs::rename(kept, made).unwrap();
                }
                self.launch(&[]);
            }
            Operation::Restore => {
                self.launch(&[]);
                self.server.ok(&["system", "recover"]);
            }
            // Interrupted, it is asked for again.
            Operation::Recover => drop(self.server.ok(&["system", "recover"])),
            start if start.is_a_start() => self.server.until_healthy(),
            _ => {}
        }
        self.until("the operation is completed or undone", states);
        self.until_quiet();
        self.until("and stays so", states);
        let homes = std::fs::read_dir(self.server.data().join("instances")).unwrap();
        for home in homes {
            let half = home.unwrap().path().join("saved.new");
            assert!(
                !half.exists(),
                "after {operation:?} half of what was to be saved is left"
            );
        }
        let mut differences = self.server.differences();
        while !differences.is_empty() {
            assert!(
                started.elapsed() < Duration::from_secs(CONVERGES),
                "after {operation:?}: {differences:#?}"
            );
            differences = self.server.differences();
        }
    }

    /// Does the operation and dies when it comes by the place for the `time`th time. Gives whether it did: how
    /// often a place is come by may differ from run to run, but for the first time.
    pub(super) fn kill_at(&mut self, operation: Operation, place: &str, time: usize) -> bool {
        self.arrange(operation);
        let order = format!("{place}#{time}");
        let context = format!("{operation:?} killed at {order}");
        if std::env::var_os("WARREN_CRASH_VERBOSE").is_some() {
            eprintln!("{context}");
        }
        let recorded = self.recorded();
        let died = if operation == Operation::Restore {
            self.server.kill();
            self.perform(operation, &[("WARREN_CRASH_AT", &order)]);
            true
        } else if operation.is_a_start() {
            self.server.kill();
            self.perform(operation, &[("WARREN_CRASH_AT", &order)]);
            self.server.dies_within(Duration::from_secs(5))
        } else {
            self.order(&order);
            // Asked from elsewhere: the server may die before it answers, and an answer may take its time.
            self.perform(operation, &[]);
            self.server.dies_within(Duration::from_millis(1500))
        };
        assert!(died || time > 1, "{context}: it did not come by");
        self.order("");
        let promised = self.promised(operation, recorded);
        if operation == Operation::Restore {
            // Again, and now to its end.
            let backup = self.server.data().join("backup.db");
            self.server
                .ok(&["system", "restore", backup.to_str().unwrap()]);
        } else if died || operation.is_a_start() {
            if !died {
                // It was ordered by the environment, and would die of the order later.
                self.server.kill();
            }
            match operation {
                Operation::Install => self.spawn(&[]),
                _ => self.launch(&[]),
            }
        }
        self.settle(operation, &promised);
        died
    }

    /// Dies at some place of some operation, and then again and again while the next servers recover; gives how
    /// often they did. The seed decides on all of it.
    pub(super) fn kill_again_and_again(&mut self, seed: u64) -> usize {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let operation = *random.of(&[
            Operation::Create,
            Operation::Stop,
            Operation::Start,
            Operation::Pause,
            Operation::Resume,
            Operation::Standby,
            Operation::Wake,
            Operation::Delete,
            Operation::DeleteStopped,
        ]);
        if !self.places.contains_key(&operation) {
            let places = self.trace(operation).into_keys().collect();
            self.places.insert(operation, places);
        }
        if !self.places.contains_key(&Operation::Adopt) {
            let places = self.trace(Operation::Adopt).into_keys().collect();
            self.places.insert(Operation::Adopt, places);
        }
        self.arrange(operation);
        let recorded = self.recorded();
        let place = random.of(&self.places[&operation]).clone();
        self.order(&place);
        self.perform(operation, &[]);
        if !self.server.dies_within(Duration::from_millis(1500)) {
            self.server.kill();
        }
        self.order("");
        let mut kills = 0;
        for _ in 0..1 + random.below(3) {
            // At a place of the way up, or at any moment of it: places of the operation itself come again too.
            let of_recovery = [
                &self.places[&Operation::Adopt][..],
                &self.places[&operation],
            ]
            .concat();
            let place = random.of(&of_recovery).clone();
            self.spawn(&[("WARREN_CRASH_AT", &place)]);
            let moment = Duration::from_millis(20 + random.below(150));
            if !self.server.dies_within(moment) {
                self.server.kill();
            }
            kills += 1;
        }
        let promised = self.promised(operation, recorded);
        self.launch(&[]);
        self.settle(operation, &promised);
        kills
    }

    /// Takes everything away and looks that nothing is left.
    pub(super) fn strike(mut self) {
        self.prepare(State::Gone);
        assert_eq!(self.server.differences(), Vec::<String>::new());
        eventually("nothing is left", 5, || {
            self.server.leftovers().is_empty().then_some(())
        });
    }
}
