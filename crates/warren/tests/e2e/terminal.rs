//! `exec -it` on a real pseudo-terminal: what a person at a keyboard sees.

use crate::harness::{Mode, Server, missing, skip};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

struct Person {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
    program: Child,
}

impl Person {
    fn sits_down(server: &Server, arguments: &[&str], rows: u16, cols: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        tcsetwinsize(&slave, size(rows, cols)).unwrap();
        let mut command = server.cli(arguments);
        command
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(Stdio::from(slave));
        // Its own session with this terminal as the controlling one, so that a new size is told by SIGWINCH.
        unsafe_setsid(&mut command);
        let program = command.spawn().unwrap();
        let keyboard = File::from(master);
        let mut eyes = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = eyes.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Person {
            keyboard,
            screen,
            seen: String::new(),
            program,
        }
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn waits_for(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let piece = self.screen.recv_timeout(left);
            assert!(
                piece.is_ok(),
                "never saw {text:?}; the screen:\n{}",
                self.seen
            );
            self.seen
                .push_str(&String::from_utf8_lossy(&piece.unwrap()));
        }
        let end = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..end);
    }

    fn exit_code(mut self) -> Option<i32> {
        crate::harness::eventually("the command ends", 30, || self.program.try_wait().unwrap())
            .code()
    }
}

fn size(rows: u16, cols: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[expect(
    unsafe_code,
    reason = "only pre_exec can give a child a controlling terminal"
)]
fn unsafe_setsid(command: &mut std::process::Command) {
    // SAFETY: setsid and ioctl are async-signal-safe, and nothing else is done between fork and exec.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
}

#[test]
fn a_shell_by_exec_it_has_interrupts_window_size_and_exit_code() {
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(
            "a_shell_by_exec_it_has_interrupts_window_size_and_exit_code",
            &reason,
        );
    }
    let server = Server::start(Mode::Bridge);
    server.ok(&["run", "-d", "--name", "box", "busybox-web", "sleep", "1000"]);
    let mut person = Person::sits_down(&server, &["exec", "-it", "box", "sh"], 33, 101);
    person.types("stty size\r");
    person.waits_for("33 101");
    tcsetwinsize(&person.keyboard, size(41, 77)).unwrap();
    let resized = Instant::now();
    loop {
        person.types("stty size\r");
        person.waits_for("stty size");
        std::thread::sleep(Duration::from_millis(200));
        while let Ok(piece) = person.screen.try_recv() {
            person.seen.push_str(&String::from_utf8_lossy(&piece));
        }
        if person.seen.contains("41 77") {
            break;
        }
        assert!(
            resized.elapsed() < Duration::from_secs(10),
            "the new size never came; the screen:\n{}",
            person.seen
        );
    }
    person.types("sleep 1000\r");
    person.waits_for("sleep 1000");
    std::thread::sleep(Duration::from_millis(300));
    person.types("\x03");
    person.types("echo still-$((40+2))\r");
    person.waits_for("still-42");
    person.types("exit 5\r");
    assert_eq!(person.exit_code(), Some(5));
}

#[test]
fn a_kept_shell_is_left_by_its_keys_and_come_back_to() {
    if let Some(reason) = missing(Mode::Bridge) {
        return skip("a_kept_shell_is_left_by_its_keys_and_come_back_to", &reason);
    }
    let server = Server::start(Mode::Bridge);
    server.ok(&["run", "-d", "--name", "box", "busybox-web", "sleep", "1000"]);
    let keep = ["exec", "-it", "--keep", "box", "sh"];
    let mut person = Person::sits_down(&server, &keep, 24, 80);
    person.waits_for("Ctrl-P Ctrl-Q leaves it running");
    person.waits_for("# ");
    person.types("word=kept-$((40+2))\r");
    person.types("\x10\x11");
    person.waits_for("goes back to it");
    assert_eq!(person.exit_code(), Some(0));
    let id = server.ok(&["execs", "box", "-o", "name"]).trim().to_owned();
    let back = ["attach", "--exec", &id, "box"];
    let mut person = Person::sits_down(&server, &back, 30, 90);
    person.types("echo $word; stty size\r");
    person.waits_for("kept-42");
    person.waits_for("30 90");
    person.types("exit 4\r");
    assert_eq!(person.exit_code(), Some(4));
}

#[test]
fn run_it_attaches_to_the_workload_itself() {
    if let Some(reason) = missing(Mode::Bridge) {
        return skip("run_it_attaches_to_the_workload_itself", &reason);
    }
    let server = Server::start(Mode::Bridge);
    let mut person = Person::sits_down(
        &server,
        &["run", "--rm", "-it", "busybox-web", "sh"],
        24,
        80,
    );
    person.waits_for("# ");
    person.types("echo pid-$$\r");
    person.waits_for("pid-");
    person.waits_for("pid-");
    person.types("exit 9\r");
    assert_eq!(person.exit_code(), Some(9));
}
