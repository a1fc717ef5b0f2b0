//! Host and guest ends against each other over socket pairs, without a VM.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use warren_guest::client::{ClientError, GuestClient, GuestEvent, GuestEvents};
use warren_guest::double::{Behaviour, Double, Freezing, SignalHandling, Stillness};
use warren_guest::protocol::message::ExecRequest;
use warren_guest::protocol::{
    AttachKey, BootConfig, ControlEvent, ControlRequest, Endpoint, ExecOutput, ExitReport,
    ExitStatus, FrameReader, FrameWriter, ListenPlace, LogEntry, PROTOCOL_VERSION, StdinMode,
    WorkloadConfig, mux,
};
use warren_guest::serve::Link;

const KEY: AttachKey = AttachKey(*b"\x01key of a test\x02\x03");
const SOON: Duration = Duration::from_secs(10);

fn config(command: &[&str]) -> BootConfig {
    BootConfig {
        instance_id: "instance-1".to_owned(),
        hostname: "guest".to_owned(),
        hosts: Vec::new(),
        nameservers: Vec::new(),
        search: Vec::new(),
        networks: Vec::new(),
        mounts: Vec::new(),
        workload: WorkloadConfig {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: Vec::new(),
            working_dir: String::new(),
            user: String::new(),
            stop_signal: String::new(),
            terminal: None,
            stdin: StdinMode::Null,
        },
        unix_nanos: 0,
        entropy: Vec::new(),
        authorized_keys: Vec::new(),
        exit_linger_millis: 1000,
    }
}

fn exec(command: &[&str]) -> ExecRequest {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    ExecRequest {
        command,
        ..ExecRequest::default()
    }
}

/// A line that outlives hosts, as a serial port does: what a host writes reaches the guest, also after
/// that host is gone, and what the guest writes while there is no host is lost.
struct SerialLine {
    hosts: tokio::sync::mpsc::Sender<UnixStream>,
}

impl SerialLine {
    fn to(double: &Double) -> Self {
        let (guest_end, mut line) = UnixStream::pair().unwrap();
        let double = double.clone();
        tokio::spawn(async move { double.serve(guest_end, &KEY).await });
        let (hosts, mut next) = tokio::sync::mpsc::channel::<UnixStream>(4);
        tokio::spawn(async move {
            let mut host: Option<UnixStream> = None;
            let (mut up, mut down) = ([0; 4096], [0; 4096]);
            loop {
                tokio::select! {
                    attached = next.recv() => match attached {
                        Some(stream) => host = Some(stream),
                        None => return,
                    },
                    read = line.read(&mut up) => {
                        let Ok(read @ 1..) = read else { return };
                        if let Some(stream) = &mut host && stream.write_all(&up[..read]).await.is_err() {
                            host = None;
                        }
                    }
                    read = async {
                        match &mut host {
                            Some(stream) => stream.read(&mut down).await,
                            None => std::future::pending().await,
                        }
                    } => match read {
                        Ok(read @ 1..) => line.write_all(&down[..read]).await.unwrap(),
                        _ => host = None,
                    },
                }
            }
        });
        Self { hosts }
    }

    async fn connect(&self) -> UnixStream {
        let (near, far) = UnixStream::pair().unwrap();
        self.hosts.send(far).await.unwrap();
        near
    }

    async fn attach(&self) -> (GuestClient, GuestEvents) {
        GuestClient::attach(self.connect().await, &KEY, SOON)
            .await
            .unwrap()
    }
}

async fn event(events: &mut GuestEvents) -> GuestEvent {
    timeout(SOON, events.next()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_guest_boots_runs_reports_and_powers_off_when_its_exit_is_acknowledged() {
    let double = Double::new(Behaviour::default());
    let line = SerialLine::to(&double);
    let (client, mut events) = line.attach().await;
    assert_eq!(client.instance_id(), None);
    client.boot(config(&["sh", "-c", "exit 7"])).await.unwrap();
    assert!(matches!(event(&mut events).await, GuestEvent::Ready(_)));
    assert!(matches!(
        event(&mut events).await,
        GuestEvent::Started { .. }
    ));
    assert_eq!(
        event(&mut events).await,
        GuestEvent::Exited(ExitReport::code(7))
    );
    client.ack_exit().await.unwrap();
    timeout(SOON, double.powered_off()).await.unwrap();
}

#[tokio::test]
async fn hosts_that_die_at_any_moment_leave_the_line_usable_and_lose_no_log() {
    let double = Double::new(Behaviour::default());
    let line = SerialLine::to(&double);
    let (client, mut events) = line.attach().await;
    client.boot(config(&["count", "1"])).await.unwrap();
    assert!(matches!(event(&mut events).await, GuestEvent::Ready(_)));
    drop((client, events));
    let mut text = Vec::new();
    let mut next = 1;
    for round in 0..30u32 {
        let (client, mut events) = line.attach().await;
        assert_eq!(client.instance_id(), Some("instance-1"));
        assert!(matches!(event(&mut events).await, GuestEvent::Ready(_)));
        let mut logs = client.logs(next).await.unwrap();
        for _ in 0..=round % 4 {
            match timeout(SOON, logs.next()).await.unwrap().unwrap() {
                Some(LogEntry::Record(record)) => {
                    text.extend_from_slice(&record.data);
                    next = record.seq + 1;
                }
                other => panic!("{other:?}"),
            }
        }
        // Leave in the middle of things: half an exec's input, with output under way.
        let mut cat = client.exec(exec(&["cat"])).await.unwrap();
        cat.input
            .stdin(&vec![0x55; 10_000 * round as usize])
            .await
            .unwrap();
        client.ack_logs(next - 1).await.unwrap();
    }
    let lines: Vec<u64> = String::from_utf8(text)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    let expected: Vec<u64> = (1..=lines.len() as u64).collect();
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn garbage_before_an_attach_is_thrown_away() {
    let double = Double::new(Behaviour::default());
    let line = SerialLine::to(&double);
    for garbage in [
        &b"{\"request\""[..],
        &KEY.0[..9],
        &[&KEY.0[..], b"half"].concat(),
        &[0; 9000],
    ] {
        let mut dying = line.connect().await;
        dying.write_all(garbage).await.unwrap();
        drop(dying);
        let (client, _events) = line.attach().await;
        client.ping().await.unwrap();
    }
}

#[tokio::test]
async fn a_new_host_takes_over_while_the_old_one_is_still_there() {
    let double = Double::new(Behaviour::default());
    let line = SerialLine::to(&double);
    let (old, _events) = line.attach().await;
    old.ping().await.unwrap();
    let (new, _events) = line.attach().await;
    new.ping().await.unwrap();
    timeout(SOON, old.closed()).await.unwrap();
    assert!(old.ping().await.is_err());
}

#[tokio::test]
async fn exit_status_is_sent_again_until_it_is_acknowledged() {
    let double = Double::new(Behaviour::default());
    let line = SerialLine::to(&double);
    let (client, mut events) = line.attach().await;
    client.boot(config(&["exit:3"])).await.unwrap();
    while event(&mut events).await != GuestEvent::Exited(ExitReport::code(3)) {}
    drop((client, events));
    let (client, mut events) = line.attach().await;
    while event(&mut events).await != GuestEvent::Exited(ExitReport::code(3)) {}
    client.ack_exit().await.unwrap();
    timeout(SOON, double.powered_off()).await.unwrap();
}

#[tokio::test]
async fn exec_echoes_reads_input_and_reports_codes() {
    let double = Double::new(Behaviour::default());
    let line = SerialLine::to(&double);
    let (client, _events) = line.attach().await;
    let mut echo = client.exec(exec(&["echo", "a", "b"])).await.unwrap();
    let got = timeout(SOON, echo.output.collect(100))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (got.stdout.as_slice(), got.exit),
        (b"a b\n".as_ref(), ExitReport::code(0))
    );

    let mut missing = client.exec(exec(&["nothing-of-the-kind"])).await.unwrap();
    let got = timeout(SOON, missing.output.collect(100))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got.exit.status, ExitStatus::Code(127));

    let mut cat = client.exec(exec(&["cat"])).await.unwrap();
    let data: Vec<u8> = (0..3_000_000u32).map(|number| number as u8).collect();
    let writing = async {
        cat.input.stdin(&data).await.unwrap();
        cat.input.close_stdin().await.unwrap();
    };
    let (got, ()) = timeout(SOON, async {
        tokio::join!(cat.output.collect(usize::MAX), writing)
    })
    .await
    .unwrap();
    let got = got.unwrap();
    assert!(
        got.stdout == data,
        "{} of {} bytes came back right",
        got.stdout.len(),
        data.len()
    );
}

#[tokio::test]
async fn three_hundred_execs_share_a_session_and_one_more_than_allowed_is_refused_in_words() {
    let double = Double::new(Behaviour::default());
    let line = SerialLine::to(&double);
    let (client, _events) = line.attach().await;
    let mut running = Vec::new();
    for _ in 0..warren_guest::serve::EXEC_LIMIT {
        let mut cat = client.exec(exec(&["cat"])).await.unwrap();
        cat.input.stdin(b"x").await.unwrap();
        running.push(cat);
    }
    for cat in &mut running {
        let first = timeout(SOON, cat.output.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert!(matches!(first, ExecOutput::Stdout(data) if data.as_ref() == b"x"));
    }
    let mut refused = client.exec(exec(&["echo"])).await.unwrap();
    let got = timeout(SOON, refused.output.collect(10))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got.exit.status, ExitStatus::Code(126));
    assert!(got.exit.message.unwrap().contains("running already"));
    // One that stopped reading its output stops nobody else.
    running[0].input.stdin(&vec![1; 200_000]).await.unwrap();
    client.ping().await.unwrap();
}

#[tokio::test]
async fn shutdown_kills_a_workload_that_ignores_signals_after_the_grace() {
    let double = Double::new(Behaviour {
        signals: SignalHandling::Ignored,
        ..Behaviour::default()
    });
    let line = SerialLine::to(&double);
    let (client, mut events) = line.attach().await;
    client.boot(config(&["sleep", "inf"])).await.unwrap();
    while !matches!(event(&mut events).await, GuestEvent::Started { .. }) {}
    client
        .shutdown(None, Duration::from_millis(50))
        .await
        .unwrap();
    let killed = ExitReport {
        status: ExitStatus::Signal(9),
        message: None,
    };
    assert_eq!(event(&mut events).await, GuestEvent::Exited(killed));
}

#[tokio::test]
async fn a_second_boot_is_ignored_for_the_same_instance_and_refused_for_another() {
    let double = Double::new(Behaviour::default());
    let line = SerialLine::to(&double);
    let (client, mut events) = line.attach().await;
    client.boot(config(&["sleep"])).await.unwrap();
    while !matches!(event(&mut events).await, GuestEvent::Started { .. }) {}
    client.boot(config(&["exit:1"])).await.unwrap();
    let mut other = config(&["exit:1"]);
    other.instance_id = "instance-2".to_owned();
    client.boot(other).await.unwrap();
    assert!(matches!(
        event(&mut events).await,
        GuestEvent::Failed { .. }
    ));
}

#[tokio::test]
async fn a_silent_guest_is_given_up_at_the_deadline() {
    let (host, _guest) = tokio::io::duplex(4096);
    let deadline = Duration::from_millis(300);
    let attached = GuestClient::attach(host, &KEY, deadline).await;
    assert!(
        matches!(attached, Err(ClientError::AttachTimeout { deadline: given }) if given == deadline)
    );
}

#[tokio::test]
async fn a_guest_that_answers_with_noise_ends_the_session_and_nothing_else() {
    for noise in [
        vec![0xff; 5000],
        vec![0; 5000],
        b"\0\0\0\0\0\0\0\x01\x7f\xff\xff\xff".to_vec(),
    ] {
        let (host, mut guest) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let mut opening = [0; 32];
            guest.read_exact(&mut opening).await.unwrap();
            guest.write_all(&opening[16..]).await.unwrap();
            guest.write_all(&noise).await.unwrap();
            // Stay there: the host must give up by itself.
            let mut rest = Vec::new();
            let _ = guest.read_to_end(&mut rest).await;
        });
        let attached = GuestClient::attach(host, &KEY, Duration::from_secs(2)).await;
        assert!(attached.is_err());
    }
}

async fn becomes(stillness: &mut tokio::sync::watch::Receiver<Stillness>, wanted: Stillness) {
    timeout(SOON, stillness.wait_for(|now| *now == wanted))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_disk_is_still_until_the_host_says_otherwise() {
    let double = Double::new(Behaviour::default());
    let line = SerialLine::to(&double);
    let (client, _events) = line.attach().await;
    let mut stillness = double.stillness();
    let frozen = client.freeze(SOON).await.unwrap();
    assert_eq!(*stillness.borrow_and_update(), Stillness::Frozen);
    // The session is good for anything else meanwhile.
    client.ping().await.unwrap();
    assert!(matches!(
        client.freeze(SOON).await,
        Err(ClientError::Refused { .. })
    ));
    frozen.thaw().await.unwrap();
    assert_eq!(*stillness.borrow_and_update(), Stillness::Moving);
}

#[tokio::test]
async fn a_disk_goes_on_whatever_becomes_of_the_host() {
    let double = Double::new(Behaviour::default());
    let line = SerialLine::to(&double);
    let mut stillness = double.stillness();

    let (client, events) = line.attach().await;
    drop(client.freeze(SOON).await.unwrap());
    becomes(&mut stillness, Stillness::Moving).await;

    // A host that dies is missed when the next one attaches, at the latest.
    let frozen = client.freeze(SOON).await.unwrap();
    becomes(&mut stillness, Stillness::Frozen).await;
    drop((frozen, client, events));
    let (client, _events) = line.attach().await;
    becomes(&mut stillness, Stillness::Moving).await;

    // A host that neither dies nor says anything.
    let frozen = client.freeze(Duration::from_millis(20)).await.unwrap();
    becomes(&mut stillness, Stillness::Moving).await;
    assert!(matches!(
        frozen.thaw().await,
        Err(ClientError::NotHeld { .. })
    ));
    client.freeze(SOON).await.unwrap().thaw().await.unwrap();
}

#[tokio::test]
async fn a_guest_says_why_it_does_not_hold_still() {
    let double = Double::new(Behaviour {
        freezing: Freezing::Refused,
        ..Behaviour::default()
    });
    let line = SerialLine::to(&double);
    let (client, _events) = line.attach().await;
    let refused = client.freeze(SOON).await.unwrap_err();
    assert!(
        refused.to_string().contains("cannot be frozen"),
        "{refused}"
    );
    client.ping().await.unwrap();
}

/// An agent from before there were freeze streams: it answers pings, and drops streams that it cannot read.
async fn serve_as_an_older_agent(stream: UnixStream) {
    let mut link = Link::new(stream, &KEY);
    let session = link.attach().await.unwrap().unwrap();
    let (streams, mut accepted) = tokio::sync::mpsc::unbounded_channel();
    let driver = mux::guest(session, move |stream| {
        let _ = streams.send(stream);
    });
    let answering = async {
        while let Some(stream) = accepted.recv().await {
            let (read, write) = tokio::io::split(stream);
            let mut reader = FrameReader::new(read, 4096);
            let mut writer = FrameWriter::new(write);
            let open: serde_json::Value = reader.message().await.unwrap();
            if open["stream"] != "control" {
                continue;
            }
            let hello = ControlEvent::Hello {
                protocol: PROTOCOL_VERSION,
                agent: "0.0.1".to_owned(),
                instance_id: None,
            };
            writer.message(&hello).await.unwrap();
            tokio::spawn(async move {
                while let Ok(ControlRequest::Ping { id }) = reader.message().await {
                    writer.message(&ControlEvent::Pong { id }).await.unwrap();
                }
            });
        }
    };
    tokio::select! {
        _ = driver => {}
        () = answering => {}
    }
}

#[tokio::test]
async fn an_older_agent_is_told_from_a_lost_one() {
    let (near, far) = UnixStream::pair().unwrap();
    let guest = tokio::spawn(serve_as_an_older_agent(far));
    let (client, _events) = GuestClient::attach(near, &KEY, SOON).await.unwrap();
    assert!(matches!(
        client.freeze(SOON).await,
        Err(ClientError::NotKnown { request: "freeze" })
    ));
    guest.abort();
    let _ = guest.await;
    assert!(!matches!(
        client.freeze(SOON).await,
        Ok(_) | Err(ClientError::NotKnown { .. })
    ));
}

#[tokio::test]
async fn connections_are_made_in_the_guest_and_taken_from_it() {
    let line = SerialLine::to(&Double::new(Behaviour::default()));
    let (client, _events) = line.attach().await;
    let mut there = client
        .connect(Endpoint::Tcp {
            address: [127, 0, 0, 1].into(),
            port: 80,
        })
        .await
        .unwrap();
    there.write_all(b"and back").await.unwrap();
    there.shutdown().await.unwrap();
    let mut said = String::new();
    let read = timeout(SOON, there.read_to_string(&mut said)).await;
    read.unwrap().unwrap();
    assert_eq!(said, "and back");
    let missing = Endpoint::Socket {
        path: "/missing".to_owned(),
    };
    assert!(matches!(
        client.connect(missing).await,
        Err(ClientError::Refused { .. })
    ));

    let private = || ListenPlace::Private {
        user: String::new(),
    };
    let mut listener = client.listen(private()).await.unwrap();
    let path = listener.path.clone().unwrap();
    let mut inside = UnixStream::connect(&path).await.unwrap();
    inside.write_all(b"first words").await.unwrap();
    let incoming = timeout(SOON, listener.next()).await.unwrap().unwrap();
    let incoming = incoming.unwrap();
    let mut taken = listener.accept(incoming).await.unwrap();
    let mut buffer = [0; 11];
    taken.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"first words");
    taken.write_all(b"an answer").await.unwrap();
    taken.shutdown().await.unwrap();
    let mut answer = String::new();
    let read = timeout(SOON, inside.read_to_string(&mut answer)).await;
    read.unwrap().unwrap();
    assert_eq!(answer, "an answer");
    // What was taken is not there a second time.
    assert!(matches!(
        listener.accept(incoming).await,
        Err(ClientError::Refused { .. })
    ));

    // Who waits to be taken when the listener goes is hung up on, and nothing stays behind.
    let mut waiting = UnixStream::connect(&path).await.unwrap();
    timeout(SOON, listener.next()).await.unwrap().unwrap();
    drop(listener);
    let read = timeout(SOON, waiting.read(&mut buffer)).await.unwrap();
    assert_eq!(read.unwrap(), 0);
    timeout(SOON, async {
        while std::path::Path::new(&path).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}
