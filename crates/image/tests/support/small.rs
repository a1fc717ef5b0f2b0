//! File systems with little room, or with powers of their own, for tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{mount, run};

/// Room for everything a test does.
pub const PLENTY: u64 = 64 << 20;
/// What goes on behind everybody's back is over within this.
const PATIENCE: Duration = Duration::from_secs(60);
/// tmpfs gives room by the page.
pub const PAGE: u64 = 4096;

/// A small file system of one's own, unmounted at the end.
pub struct Small {
    pub at: PathBuf,
}

impl Small {
    pub fn tmpfs(test: &str, at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let options = format!("size={PLENTY},mode=0755");
        Self::mount(
            test,
            at,
            &["-t", "tmpfs", "-o", &options],
            Path::new("warren-test"),
        )
    }

    /// An ext4 of 16 MiB in a file.
    pub fn ext4(test: &str, at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let file = at.with_extension("img");
        std::fs::File::create_new(&file)
            .unwrap()
            .set_len(16 << 20)
            .unwrap();
        run(Command::new("/sbin/mkfs.ext4")
            .args(["-q", "-m", "0", "-b", "4096"])
            .arg(&file));
        Self::mount(test, at, &["-t", "ext4", "-o", "loop"], &file)
    }

    /// An XFS, whose files can share blocks; 320 MiB is about the smallest there is.
    pub fn xfs(test: &str, at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let file = at.with_extension("img");
        let image = std::fs::File::create_new(&file).unwrap();
        image.set_len(320 << 20).unwrap();
        run(Command::new("mkfs.xfs")
            .args(["-q", "-m", "reflink=1"])
            .arg(&file));
        Self::mount(test, at, &["-t", "xfs", "-o", "loop"], &file)
    }

    fn mount(test: &str, at: PathBuf, options: &[&str], what: &Path) -> Option<Self> {
        mount(test, options, what, &at).then(|| Small { at })
    }

    /// Lets a tmpfs have so much room beside what it holds, also where a seal is being written behind everybody's back.
    pub fn leave_room(&self, bytes: u64) {
        let remounted = || {
            let size = format!("remount,size={}", self.used() + bytes);
            let mut command = Command::new("mount");
            command.args(["-o", &size]).arg(&self.at);
            command.output().unwrap().status.success()
        };
        // It cannot be made smaller than what it holds by then.
        assert!((0..100).any(|_| remounted()), "it never stops growing");
    }

    /// Lets a tmpfs have so much room in all.
    pub fn resize(&self, bytes: u64) {
        // To tmpfs, no size at all is as much as there is.
        let bytes = bytes.max(PAGE);
        run(Command::new("mount")
            .args(["-o", &format!("remount,size={bytes}")])
            .arg(&self.at));
    }

    pub fn used(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.at).unwrap();
        (found.f_blocks - found.f_bfree) * found.f_frsize
    }

    /// Takes all room but so much, with a file that is made anew each time.
    pub fn leave(&self, bytes: u64) {
        let is_taken = || {
            self.throw_ballast();
            let found = rustix::fs::statvfs(&self.at).unwrap();
            let take = (found.f_bavail * found.f_frsize).saturating_sub(bytes);
            let file = std::fs::File::create_new(self.at.join("ballast")).unwrap();
            let taken = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take);
            taken != Err(rustix::io::Errno::NOSPC) && taken.map(|()| true).unwrap()
        };
        // ext4 counts as free what it still keeps for files that grow.
        assert!((0..100).any(|_| is_taken()), "its room cannot be taken");
    }

    pub fn throw_ballast(&self) {
        drop(std::fs::remove_file(self.at.join("ballast")));
        self.settle();
    }

    /// Waits until all room is given out again: whoever still seals a removed disk holds it, and ext4 wants its removal
    /// in the journal.
    pub fn settle(&self) {
        let is_sealing = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let names = tasks.map(|task| std::fs::read_to_string(task.path().join("comm")));
            names.flatten().any(|name| name.trim_end() == "disk-seal")
        };
        let begun = Instant::now();
        while is_sealing() {
            assert!(begun.elapsed() < PATIENCE, "a disk is sealed for ever");
            std::thread::sleep(Duration::from_millis(1));
        }
        rustix::fs::syncfs(std::fs::File::open(&self.at).unwrap()).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run(Command::new("umount").args(["--lazy"]).arg(&self.at));
    }
}
