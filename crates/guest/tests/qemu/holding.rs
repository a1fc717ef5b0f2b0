//! A guest that is held still for a copy of its disk.

use crate::SOON;
use crate::exec::{shell, words};
use crate::host::run;
use crate::vm::Vm;
use std::fs;
use std::time::Duration;
use tokio::time::timeout;
use warren_guest::client::{ClientError, GuestClient};
use warren_guest::protocol::ExecRequest;

/// A workload that writes all the time is held still: the disk does not change, and a copy of it is clean.
pub(crate) async fn holding_still(vm: &Vm, client: &GuestClient) {
    let upper = vm.upper();
    let changed = || fs::metadata(&upper).unwrap().modified().unwrap();
    let writing = ExecRequest {
        command: words(&[
            "sh",
            "-c",
            "n=0; while true; do n=$((n+1)); echo $n > /written; dd if=/dev/zero of=/bulk bs=64k count=8 \
             2>/dev/null; done",
        ]),
        user: Some("root".to_owned()),
        ..ExecRequest::default()
    };
    let writer = client.exec(writing).await.unwrap();
    let mut counts = Vec::new();
    for _ in 0..3 {
        let frozen = client.freeze(SOON).await.unwrap();
        let before = changed();
        let copy = upper.with_file_name("copy.ext4");
        fs::copy(&upper, &copy).unwrap();
        // What only reads goes on meanwhile; what writes waits, and the agent waits for neither.
        let (text, _) = shell(client, "cat /etc/hostname").await;
        assert_eq!(text, "web\n");
        assert_eq!(changed(), before);
        frozen.thaw().await.unwrap();
        run("e2fsck", &["-fn", copy.to_str().unwrap()]);
        let (count, _) = shell(client, "cat /written").await;
        counts.push(count.trim().parse::<u64>().unwrap_or(0));
    }
    let more = timeout(SOON, async {
        loop {
            let (count, _) = shell(client, "cat /written").await;
            if count
                .trim()
                .parse::<u64>()
                .is_ok_and(|count| count > counts[2])
            {
                return;
            }
        }
    });
    more.await.unwrap();
    // A host that says nothing more: the guest's own time is up.
    let frozen = client.freeze(Duration::from_millis(100)).await.unwrap();
    let (written, _) = shell(client, "echo on > /tmp/goes-on && cat /tmp/goes-on").await;
    assert_eq!(written, "on\n");
    assert!(matches!(
        frozen.thaw().await,
        Err(ClientError::NotHeld { .. })
    ));
    drop(writer);
}
