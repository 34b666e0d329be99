//! A bare pseudo-terminal.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};

/// A pseudo-terminal of 80 columns and 24 rows.
pub(crate) struct Pty {
    master: File,
    /// What the program gets.
    pub(crate) slave: OwnedFd,
}

impl Pty {
    pub(crate) fn new() -> Self {
        let size = nix::pty::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = nix::pty::openpty(Some(&size), None).unwrap();
        // What the program inherits would keep the terminal open.
        for end in [&pair.master, &pair.slave] {
            nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).unwrap();
        }
        Self { master: File::from(pair.master), slave: pair.slave }
    }

    /// Starts the command on it and waits until it has drawn something with these words.
    pub(crate) fn start(&self, command: &mut Command, words: &str) -> Child {
        let twin = || self.slave.try_clone().unwrap();
        let child = command.stdin(twin()).stdout(twin()).stderr(twin()).spawn().unwrap();
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        while !String::from_utf8_lossy(&all).contains(words) {
            let n = (&self.master).read(&mut piece).unwrap();
            all.extend_from_slice(&piece[..n]);
        }
        child
    }

    /// Starts the command on it, and gives what it wrote until its end. Standard error goes there too.
    pub(crate) fn run(self, command: &mut Command) -> (std::process::ExitStatus, String) {
        let twin = || self.slave.as_fd().try_clone_to_owned().unwrap();
        let mut child = command.stdin(twin()).stdout(twin()).stderr(twin()).spawn().unwrap();
        drop(self.slave);
        // The command holds descriptors of its own.
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null());
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        // The end of the last writer is an error (EIO) and not an end of file.
        while let Ok(n @ 1..) = (&self.master).read(&mut piece) {
            all.extend_from_slice(&piece[..n]);
        }
        (child.wait().unwrap(), String::from_utf8_lossy(&all).into_owned())
    }
}
