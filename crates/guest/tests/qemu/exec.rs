//! Commands in a guest: their input, output, exit, time, and terminals.

use crate::SOON;
use tokio::time::timeout;
use warren_guest::client::{ExecReader, GuestClient};
use warren_guest::protocol::{ExecOutput, ExecRequest, ExitReport, ExitStatus, Terminal};

pub(crate) fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

pub(crate) async fn shell(client: &GuestClient, script: &str) -> (String, ExitReport) {
    let request = ExecRequest {
        command: words(&["sh", "-c", script]),
        ..ExecRequest::default()
    };
    exec(client, request).await
}

pub(crate) async fn exec(client: &GuestClient, request: ExecRequest) -> (String, ExitReport) {
    let mut running = client.exec(request).await.unwrap();
    let got = timeout(SOON, running.output.collect(1 << 20))
        .await
        .unwrap()
        .unwrap();
    (
        String::from_utf8(got.stdout).unwrap() + &String::from_utf8(got.stderr).unwrap(),
        got.exit,
    )
}

pub(crate) async fn commands(client: &GuestClient) {
    client.ping().await.unwrap();
    assert_eq!(shell(client, "exit 7").await.1, ExitReport::code(7));
    assert_eq!(
        shell(client, "kill -9 $$").await.1.status,
        ExitStatus::Signal(9)
    );
    for (command, code) in [
        ("nothing-like-it", 127),
        ("/bin/none", 127),
        ("/bin/not-executable", 126),
    ] {
        let request = ExecRequest {
            command: words(&[command]),
            ..ExecRequest::default()
        };
        let (_, exit) = exec(client, request).await;
        assert_eq!(exit.status, ExitStatus::Code(code), "{exit:?}");
        assert!(
            exit.message
                .unwrap()
                .starts_with(&format!("exec {command}: "))
        );
    }
    let request = ExecRequest {
        command: words(&["sleep", "1000"]),
        timeout_millis: Some(200),
        ..ExecRequest::default()
    };
    let (_, exit) = exec(client, request).await;
    assert_eq!(
        (exit.status, exit.message.is_some()),
        (ExitStatus::Signal(9), true)
    );

    let data: Vec<u8> = (0..500_000u32).map(|number| (number / 3) as u8).collect();
    let request = ExecRequest {
        command: words(&["cat"]),
        ..ExecRequest::default()
    };
    let mut cat = client.exec(request).await.unwrap();
    let feed = async {
        cat.input.stdin(&data).await.unwrap();
        cat.input.close_stdin().await.unwrap();
    };
    let both = async { tokio::join!(cat.output.collect(usize::MAX), feed) };
    let (got, ()) = timeout(SOON, both).await.unwrap();
    assert!(got.unwrap().stdout == data);

    // A terminal: size, Ctrl-C, end of input.
    let request = ExecRequest {
        command: words(&[
            "sh",
            "-c",
            "tty; stty size; cat; trap 'stty size; echo caught; exit 9' INT; echo armed; \
             while true; do sleep 0.05; done",
        ]),
        terminal: Some(Terminal {
            rows: 30,
            cols: 100,
        }),
        ..ExecRequest::default()
    };
    let mut running = client.exec(request).await.unwrap();
    let mut seen = until(&mut running.output, "30 100").await;
    assert!(seen.contains("/dev/pts/"), "{seen}");
    running.input.close_stdin().await.unwrap();
    seen.push_str(&until(&mut running.output, "armed").await);
    running
        .input
        .resize(Terminal {
            rows: 40,
            cols: 120,
        })
        .await
        .unwrap();
    running.input.stdin(b"\x03").await.unwrap();
    let rest = timeout(SOON, running.output.collect(10_000))
        .await
        .unwrap()
        .unwrap();
    seen.push_str(&String::from_utf8(rest.stdout).unwrap());
    assert!(seen.contains("40 120") && seen.contains("caught"), "{seen}");
    assert_eq!(rest.exit, ExitReport::code(9));
}

async fn until(output: &mut ExecReader, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        match timeout(SOON, output.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            ExecOutput::Stdout(data) => seen.push_str(&String::from_utf8_lossy(&data)),
            other => panic!("{other:?} after {seen}"),
        }
    }
    seen
}
