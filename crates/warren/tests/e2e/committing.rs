//! What a guest has changed becomes an image, while it runs and when it is stopped, and other guests run from it.

use crate::harness::{Mode, Server, eventually};
use crate::scenarios::in_mode;
use serde_json::Value;

#[test]
fn a_committed_instance_is_an_image_that_runs() {
    in_mode(
        "a_committed_instance_is_an_image_that_runs",
        Mode::User,
        commits_while_it_writes_and_when_it_is_stopped,
    );
}

/// Everything of the tree that a layer can tell, in words; what boots write and what is written all the time left out.
const TELL: &str = "cd / && find . -xdev \\( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./tmp \
    -o -path ./etc -o -path ./busy \\) -prune -o ! -path . -exec stat -c '%n %F %a %u:%g %s %Y %h %t:%T' {} + | \
    grep -v ' directory .* 0:0$' | sort; cat /var/www/index.html /swapped/fresh /made/one /made/two; readlink /made/link";

fn commits_while_it_writes_and_when_it_is_stopped(server: &Server) {
    let sh = |name: &str, script: &str| server.ok(&["exec", name, "sh", "-c", script]);
    server.ok(&[
        "run", "-d", "--name", "box", "--memory", "128M", "busybox-web", "sh", "-c",
        "mkdir /busy; n=0; while true; do n=$((n+1)); echo $n > /busy/count; dd if=/dev/zero of=/busy/bulk bs=64k count=4 \
         2>/dev/null; done",
    ]);
    // Changed, removed, replaced, linked, and of every kind.
    sh(
        "box",
        "set -e; echo changed > /var/www/index.html; rm /bin/serve; rm -r /usr/bin; mkdir /usr/bin; \
         ln -s /bin/busybox /usr/bin/again; mkdir /made /swapped; echo one > /made/one; ln /made/one /made/two; \
         ln -s ../var /made/link; mknod /made/null c 1 3; mkfifo /made/pipe; chown 33:70000 /made/one; chmod 4711 /made/one; \
         echo fresh > /swapped/fresh; dd if=/dev/zero of=/made/sparse bs=1 count=1 seek=9M 2>/dev/null; \
         touch -d '2001-02-03 04:05:06' /made/pipe; echo mine >> /etc/passwd",
    );
    let made: Value = serde_json::from_str(&server.ok(&[
        "commit",
        "-o",
        "json",
        "-c",
        "CMD [\"sleep\", \"1000\"]",
        "-m",
        "while it writes",
        "box",
        "team/box:1",
    ]))
    .unwrap();
    // It goes on at once, and had never stopped writing for good.
    assert_eq!(sh("box", "echo here"), "here\n");
    let count = || {
        sh("box", "cat /busy/count")
            .trim()
            .parse::<u64>()
            .unwrap_or(0)
    };
    let before = count();
    eventually("the workload goes on", 20, || {
        (count() > before).then_some(())
    });
    assert_eq!(server.differences(), Vec::<String>::new());

    // The same without a guest, and once more: the same image as long as nothing changes.
    let told = sh("box", TELL);
    server.ok(&["stop", "box"]);
    for name in ["team/box:2", "team/box:3"] {
        server.ok(&["commit", "-c", "CMD [\"sleep\", \"1000\"]", "box", name]);
    }
    let digest = |name: &str| {
        let path = format!("/images/{}", name.replace('/', "%2F"));
        server.api("GET", &path, None).1["digest"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(digest("team/box:2"), digest("team/box:3"));
    assert_ne!(made[0]["digest"], digest("team/box:2"));

    for (name, image) in [("one", "team/box:1"), ("two", "team/box:2")] {
        server.ok(&["run", "-d", "--name", name, "--memory", "128M", image]);
        assert_eq!(sh(name, TELL), told, "{image}");
        let gone = sh(
            name,
            "ls -A /usr/bin; ls /bin/serve 2>&1; tail -n 1 /etc/passwd; cat /etc/hostname",
        );
        assert_eq!(
            gone,
            format!("again\nls: /bin/serve: No such file or directory\nmine\n{name}\n"),
            "{image}"
        );
        let whole = sh(name, "cat /busy/count | wc -l; ps | grep -c '[s]leep 1000'");
        assert!(whole.trim().ends_with('1'), "{image}: {whole}");
        server.ok(&["rm", "-f", name]);
    }
    // What can neither be asked nor read is refused.
    server.ok(&["start", "box"]);
    server.ok(&["pause", "box"]);
    let refused = server.run(&["commit", "box", "team/box:4"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("resume it, or stop it"), "{said}");
    assert_eq!(server.differences(), Vec::<String>::new());
}
