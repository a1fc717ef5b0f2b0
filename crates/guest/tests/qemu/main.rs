//! The agent as PID 1 of a real VM: QEMU's microvm, an EROFS image, an ext4 upper, a virtio-serial channel.
//!
//! Needs `qemu-system-x86_64`, `mkfs.erofs`, `mke2fs`, a static busybox and a guest kernel (`WARREN_KERNEL`, or
//! the newest of `/var/cache/warren/kernels`); without one of them the test is skipped, loudly.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod boot;
mod exec;
mod files;
mod holding;
mod host;
mod image;
#[path = "../../../../tests/skip.rs"]
mod skip;
mod vm;

use boot::{config, configuration};
use exec::{commands, shell, words};
use files::files;
use holding::holding_still;
use host::{Kernel, kernels, missing, run};
use skip::skip;
use std::io::Write as _;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use vm::Vm;
use warren_guest::client::{GuestClient, GuestEvent, GuestEvents};
use warren_guest::protocol::{ExecRequest, ExitReport, ExitStatus, LogEntry};

/// A race that shows once in twenty times shows here.
const ROUNDS: usize = 10;
const SOON: Duration = Duration::from_secs(60);

async fn event(events: &mut GuestEvents) -> GuestEvent {
    timeout(SOON, events.next()).await.unwrap().unwrap()
}

const COUNTING: &str = "echo $GREETING from $(id -un) in $(pwd); echo oops >&2; \
    trap 'echo stopping; exit 3' USR1; n=0; while true; do n=$((n+1)); echo count $n; sleep 0.05; done";

#[tokio::test]
async fn guest_boots_in_qemu() {
    if let Some(reason) = missing() {
        return skip("guest_boots_in_qemu", &reason);
    }
    for kernel in kernels() {
        whole_life(&kernel).await;
    }
}

async fn whole_life(kernel: &Kernel) {
    let start = Instant::now();
    let mut vm = Vm::start(kernel);
    let (client, mut events) = vm.attach().await;
    assert_eq!(client.instance_id(), None);
    client.boot(config(&["sh", "-c", COUNTING])).await.unwrap();
    match event(&mut events).await {
        GuestEvent::Ready(report) => {
            let line = format!(
                "{}: {report:?} after {:?}\n",
                kernel.image.display(),
                start.elapsed()
            );
            std::io::stderr().write_all(line.as_bytes()).unwrap();
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        event(&mut events).await,
        GuestEvent::Started { .. }
    ));
    configuration(&client).await;
    files(&client).await;
    for _ in 0..ROUNDS {
        commands(&client).await;
    }

    // Hosts come and go, in the middle of a command; the workload's count has no holes.
    let mut log = Vec::new();
    let mut next = 1;
    drop((client, events));
    for _ in 0..5 {
        let (client, mut events) = vm.attach().await;
        assert_eq!(client.instance_id(), Some("instance-1"));
        assert!(matches!(event(&mut events).await, GuestEvent::Ready(_)));
        let mut logs = client.logs(next).await.unwrap();
        for _ in 0..3 {
            match timeout(SOON, logs.next()).await.unwrap().unwrap().unwrap() {
                LogEntry::Record(record) => {
                    next = record.seq + 1;
                    log.extend_from_slice(&record.data);
                }
                other => panic!("{other:?}"),
            }
        }
        client.ack_logs(next - 1).await.unwrap();
        let request = ExecRequest {
            command: words(&["cat"]),
            ..ExecRequest::default()
        };
        let mut cat = client.exec(request).await.unwrap();
        cat.input.stdin(&[0x55; 100_000]).await.unwrap();
    }

    // Stopped by its own signal; its exit is told twice, because nobody acknowledged it the first time.
    let (client, mut events) = vm.attach().await;
    assert_eq!(shell(&client, "ps | grep -c ' cat$'").await.0.trim(), "0");
    client
        .shutdown(None, Duration::from_secs(20))
        .await
        .unwrap();
    let exited = GuestEvent::Exited(ExitReport::code(3));
    while event(&mut events).await != exited {}
    drop((client, events));
    let (client, mut events) = vm.attach().await;
    while event(&mut events).await != exited {}
    let mut logs = client.logs(next).await.unwrap();
    while let Some(entry) = timeout(SOON, logs.next()).await.unwrap().unwrap() {
        match entry {
            LogEntry::Record(record) => log.extend_from_slice(&record.data),
            LogEntry::End { .. } => {}
            LogEntry::Gap { from, to } => panic!("gap from {from} to {to}"),
        }
    }
    client.ack_exit().await.unwrap();
    vm.gone().await;
    counted(&String::from_utf8(log).unwrap());
    assert!(
        vm.serial().contains("workload exited: Code(3)"),
        "{}",
        vm.serial()
    );
    let upper = vm.upper();
    run("e2fsck", &["-fn", upper.to_str().unwrap()]);
}

fn counted(log: &str) {
    assert!(
        log.contains("hello from web in /srv/made/for/it\n"),
        "{log}"
    );
    assert!(
        log.contains("oops\n") && log.ends_with("stopping\n"),
        "{log}"
    );
    let counts: Vec<u64> = log
        .lines()
        .filter_map(|line| line.strip_prefix("count ")?.parse().ok())
        .collect();
    assert!(counts.len() > 10);
    assert!(
        counts
            .iter()
            .zip(1..)
            .all(|(count, expected)| *count == expected),
        "{counts:?}"
    );
}

/// A guest on the newest kernel that has been told to run `command`; `None`, and `test` skipped, where there can be none.
async fn booted(test: &str, command: &[&str]) -> Option<(Vm, GuestClient, GuestEvents)> {
    if let Some(reason) = missing() {
        skip(test, &reason);
        return None;
    }
    let vm = Vm::start(&kernels()[0]);
    let (client, events) = vm.attach().await;
    client.boot(config(command)).await.unwrap();
    Some((vm, client, events))
}

#[tokio::test]
async fn a_guest_that_writes_holds_still_and_goes_on_whatever_happens() {
    let test = "a_guest_that_writes_holds_still_and_goes_on_whatever_happens";
    let Some((mut vm, client, mut events)) = booted(test, &["sh", "-c", COUNTING]).await else {
        return;
    };
    while !matches!(event(&mut events).await, GuestEvent::Started { .. }) {}
    holding_still(&vm, &client).await;
    // A frozen disk does not keep a guest from leaving, nor from leaving it clean.
    let _frozen = client.freeze(SOON).await.unwrap();
    client
        .shutdown(None, Duration::from_secs(20))
        .await
        .unwrap();
    let exited = GuestEvent::Exited(ExitReport::code(3));
    while event(&mut events).await != exited {}
    client.ack_exit().await.unwrap();
    vm.gone().await;
    let upper = vm.upper();
    run("e2fsck", &["-fn", upper.to_str().unwrap()]);
}

#[tokio::test]
async fn workload_that_is_not_there_is_reported_and_the_guest_leaves_without_a_host() {
    let test = "workload_that_is_not_there_is_reported_and_the_guest_leaves_without_a_host";
    let Some((mut vm, client, mut events)) = booted(test, &["/no/such/entrypoint"]).await else {
        return;
    };
    let report = loop {
        if let GuestEvent::Exited(report) = event(&mut events).await {
            break report;
        }
    };
    assert_eq!(report.status, ExitStatus::Code(127));
    let message = report.message.unwrap();
    assert_eq!(
        message,
        "exec /no/such/entrypoint: no such file or directory"
    );
    drop((client, events));
    vm.gone().await;
}
