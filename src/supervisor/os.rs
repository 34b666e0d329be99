//! Every system call the supervisor needs, and the only file with `unsafe` in it. Each function is small, says what it
//! promises, and hides the numbers of the C interface; what a result *means* is decided elsewhere.

#![expect(unsafe_code, reason = "pidfd, waitid and signal dispositions have no safe interface")]

use crate::event::{ExitHow, ProcId};
use crate::supervisor::proc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

/// Signal numbers as the events carry them.
pub const SIGKILL: i32 = libc::SIGKILL;
/// The polite one.
pub const SIGTERM: i32 = libc::SIGTERM;
/// Stops without asking.
pub const SIGSTOP: i32 = libc::SIGSTOP;

/// Our own pid.
pub fn own_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

/// Our parent's pid.
pub fn parent_pid() -> i32 {
    nix::unistd::getppid().as_raw()
}

/// The user we act as.
pub fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// This thread, and those it starts, yield to everybody else, but do not starve. A refusal is borne.
pub fn lowest_priority() {
    // SAFETY: plain numbers; 0 is the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
    }
}

/// Memory that was freed goes back to the system, however many threads come and go: two heaps for all of them, where glibc
/// would have eight a processor, and pages of its own for whatever is large. To be called before there are threads.
#[cfg(target_env = "gnu")]
pub fn keep_heap_small() {
    // SAFETY: plain numbers, and nobody else allocates meanwhile. A refusal leaves things as they were.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

/// Other allocators have no such settings.
#[cfg(not(target_env = "gnu"))]
pub fn keep_heap_small() {}

/// From now on orphans of our descendants become our children instead of init's.
pub fn become_subreaper() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)
}

/// Leaves the terminal's session, so that neither Ctrl-C nor a closed terminal reaches us.
pub fn become_session_leader() -> io::Result<()> {
    nix::unistd::setsid().map(drop).map_err(io::Error::from)
}

/// Gives every signal that is ignored back its default. What is ignored here would stay ignored in the programs we
/// start: a guard begun with `nohup` or from a script's `&` would give vLLM a dead SIGHUP or SIGINT.
pub fn reset_ignored_signals() -> io::Result<()> {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: a zeroed sigaction is a valid value of the struct, and both pointers are to live locals.
        // The numbers between 32 and SIGRTMIN belong to libc, which answers EINVAL for them: they are skipped.
        unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(number, std::ptr::null(), &raw mut old) == 0
                && old.sa_sigaction == libc::SIG_IGN
            {
                let mut new: libc::sigaction = std::mem::zeroed();
                new.sa_sigaction = libc::SIG_DFL;
                if libc::sigaction(number, &raw const new, std::ptr::null_mut()) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
    }
    Ok(())
}

/// Blocks what a terminal, a shell or a person could send, and SIGCHLD, which the returned descriptor then delivers.
/// Blocked and not ignored, so that nothing about it has to be undone but the mask ([`start_unblocked`]).
pub fn block_signals() -> io::Result<SignalFd> {
    use Signal::*;
    block_and_watch(
        &[SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGALRM],
        &[SIGCHLD],
    )
}

/// The same for a first process: what can be passed on ([`sent_signals`]) is delivered too.
pub fn block_signals_to_pass_on() -> io::Result<SignalFd> {
    use Signal::*;
    block_and_watch(
        &[SIGPIPE, SIGTSTP, SIGTTIN, SIGTTOU, SIGALRM],
        &[SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2],
    )
}

fn block_and_watch(silenced: &[Signal], delivered: &[Signal]) -> io::Result<SignalFd> {
    let watched: SigSet = delivered.iter().copied().collect();
    let blocked: SigSet = silenced.iter().chain(delivered).copied().collect();
    nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None)?;
    Ok(SignalFd::with_flags(&watched, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// What came in that a process sent. Not SIGCHLD, and not what comes from the kernel: the terminal gives its signals to
/// the whole process group, so that a child of ours has them already.
pub fn sent_signals(signals: &SignalFd) -> Vec<i32> {
    let mut sent = Vec::new();
    while let Ok(Some(info)) = signals.read_signal() {
        let signal = i32::try_from(info.ssi_signo).unwrap_or_default();
        // Of senders the codes are SI_USER, which is 0, and negative ones (sigaction(2)).
        if signal != libc::SIGCHLD && info.ssi_code <= libc::SI_USER {
            sent.push(signal);
        }
    }
    sent
}

/// From now on new files are ours alone. Returns the mask before, for those we start for others.
pub fn make_new_files_private() -> u32 {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077)).bits()
}

/// Starts a program with an empty signal mask, where `std::process` passes ours on, and with this mask for new files.
pub fn start_unblocked(command: &mut Command, umask: Option<u32>) -> io::Result<Child> {
    use std::os::unix::process::CommandExt;
    let unblock = move || {
        if let Some(umask) = umask {
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
        }
        SigSet::empty().thread_set_mask().map_err(io::Error::from)
    };
    // SAFETY: between fork and exec this only sets the masks, which is async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(unblock) };
    command.spawn()
}

/// Empties a signal descriptor. What arrived is not of interest: SIGCHLD merges, so one must look at every child anyway.
pub fn drain(signals: &SignalFd) {
    while let Ok(Some(_)) = signals.read_signal() {}
}

/// Marks every descriptor above 2 close-on-exec, also those that a careless ancestor left open in us.
pub fn close_on_exec_above_stdio() -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: no pointers; with this flag the call closes nothing now.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC)
    };
    if done == 0 {
        return Ok(());
    }
    // A kernel before 5.11.
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        if fd > 2 {
            // SAFETY: sets a flag on a descriptor number; EBADF for the closed one of read_dir is harmless.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Closes every descriptor above 2, for a forked child that must not hold what its parent holds.
pub fn close_above_stdio() {
    // SAFETY: no pointers. The caller never uses or drops what owned these descriptors: it ends with `_exit`.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, 0 as libc::c_uint)
    };
    if done != 0 {
        // A kernel before 5.9.
        for fd in 3..4096 {
            // SAFETY: as above; a number that is not open is answered with EBADF.
            unsafe { libc::close(fd) };
        }
    }
}

/// Forks. The child runs `work` and ends with what that returns; nothing of the parent is dropped in it. The caller must
/// have a single thread: whatever another thread was in the middle of would stay so in the child for ever.
pub fn fork_child(work: impl FnOnce() -> u8) -> io::Result<i32> {
    // SAFETY: with one thread, the copied memory is in a consistent state.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(child.as_raw()),
        nix::unistd::ForkResult::Child => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(70);
            // SAFETY: ends the process.
            unsafe { libc::_exit(i32::from(code)) }
        }
    }
}

/// Kills a child and waits until it is reaped. It must be ours and not be reaped by anybody else.
pub fn end_child(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    // A child that is not reaped keeps its pid, so this cannot reach another process.
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    while nix::sys::wait::waitpid(pid, None) == Err(nix::errno::Errno::EINTR) {}
}

/// What became of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The kernel took it.
    Sent,
    /// The process is not there any more; nothing was sent to whoever may have its pid now.
    Gone,
}

/// A handle on one process, immune to pid reuse. Readable for `poll` once the whole process is dead.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the handle, then checks that the pid still belongs to `id`. `None`: that process is gone.
    pub fn open(id: ProcId) -> io::Result<Option<Self>> {
        // SAFETY: no pointers; the result is a fresh descriptor or -1. The kernel makes it close-on-exec.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id.pid, 0 as libc::c_uint) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) };
        }
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // The order matters: whatever has this pid now is what the handle holds, so the start time decides.
        Ok(proc::stat(id.pid).filter(|stat| stat.id == id).map(|_| Self(fd)))
    }

    /// Sends a signal to exactly this process.
    pub fn signal(&self, signal: i32) -> io::Result<Delivery> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        let no_flags: libc::c_uint = 0;
        // SAFETY: a null siginfo is allowed and means "as kill() would".
        let done = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, no_info, no_flags)
        };
        delivery(i32::try_from(done).unwrap_or(-1))
    }

    /// How the process ended, also when somebody else has reaped it: the kernel keeps that for whoever holds a handle.
    /// Linux 6.15 and later; `None` before, and while it lives.
    pub fn ending(&self) -> Option<ExitHow> {
        /// `struct pidfd_info` in its first form; the kernel accepts every known size.
        #[repr(C)]
        #[derive(Default)]
        struct Info {
            mask: u64,
            cgroup: u64,
            ids: [u32; 11],
            exit_code: i32,
        }
        const PIDFD_GET_INFO: libc::Ioctl = 0xC040_FF0B_u32 as libc::Ioctl;
        const PIDFD_INFO_EXIT: u64 = 1 << 3;
        let mut info = Info { mask: PIDFD_INFO_EXIT, ..Info::default() };
        // SAFETY: the number carries the size of `Info`, 64 bytes, and the pointer is to a live local of that type.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        (done == 0 && info.mask & PIDFD_INFO_EXIT != 0).then(|| decode_status(info.exit_code))
    }
}

/// Of a call that answers 0 or -1.
fn delivery(done: i32) -> io::Result<Delivery> {
    if done == 0 {
        return Ok(Delivery::Sent);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(Delivery::Gone) } else { Err(error) }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends a signal to `id` and to nobody else.
pub fn signal(id: ProcId, signal: i32) -> io::Result<Delivery> {
    match PidFd::open(id) {
        Ok(Some(handle)) => handle.signal(signal),
        Ok(None) => Ok(Delivery::Gone),
        // No pidfd in this kernel, or no descriptor left: check and send at once, the best that remains.
        Err(_) => {
            if proc::stat(id.pid).is_none_or(|stat| stat.id != id) {
                return Ok(Delivery::Gone);
            }
            // SAFETY: no pointers.
            delivery(unsafe { libc::kill(id.pid, signal) })
        }
    }
}

/// Kills a whole process group, between two forks of whoever forks in it. The caller holds an unreaped zombie of that
/// group: as long as it is not reaped, the number cannot come to mean another group.
pub fn kill_group_of_zombie(group: i32) {
    if group > 1 {
        // SAFETY: no pointers. That nobody is left in it is as good as success.
        unsafe { libc::kill(-group, SIGKILL) };
    }
}

/// The pid of a dead child that has not been reaped, without reaping it, so that `/proc` can still be asked about it.
/// Waits for *any* child: only the keeper may call this, and a first process.
pub fn peek_dead_child() -> Option<i32> {
    // SAFETY: a zeroed siginfo is valid; the pointer is to a live local.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        if libc::waitid(libc::P_ALL, 0, &raw mut info, flags) != 0 {
            return None;
        }
        Some(info.si_pid()).filter(|pid| *pid > 0)
    }
}

/// Reaps one child if it is dead. `None`: it is not our child, or not dead.
pub fn reap_child(pid: i32) -> Option<ExitHow> {
    let mut status: libc::c_int = 0;
    // SAFETY: the pointer is to a live local.
    let got = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
    if got == pid && pid > 0 { Some(decode_status(status)) } else { None }
}

/// A wait status, also as `/proc/PID/stat` shows it in its last field. Not nix's decoder, which refuses a death by a
/// real-time signal after the child is already reaped.
pub fn decode_status(status: i32) -> ExitHow {
    if libc::WIFSIGNALED(status) {
        ExitHow::Signal { signal: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) }
    } else {
        ExitHow::Code { code: libc::WEXITSTATUS(status) }
    }
}

/// A descriptor to wait for.
#[derive(Debug, Clone, Copy)]
pub struct Interest<'a> {
    /// Which.
    pub fd: BorrowedFd<'a>,
    /// Also wake when it can be written.
    pub write: bool,
}

/// Waits until one of the descriptors is readable (or writable where asked, or broken) or the time is over. A signal
/// ends the wait early. Returns for each descriptor whether it is ready.
pub fn poll(interests: &[Interest<'_>], timeout: Duration) -> io::Result<Vec<bool>> {
    let mut fds: Vec<PollFd<'_>> = interests
        .iter()
        .map(|interest| {
            let write = if interest.write { PollFlags::POLLOUT } else { PollFlags::empty() };
            PollFd::new(interest.fd, PollFlags::POLLIN | write)
        })
        .collect();
    // Rounded up: a rest of less than a millisecond must not become a busy loop.
    let millis = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    match nix::poll::poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
        Ok(_) => Ok(fds.iter().map(|fd| fd.any().unwrap_or(true)).collect()),
        Err(nix::errno::Errno::EINTR) => Ok(vec![false; interests.len()]),
        Err(errno) => Err(errno.into()),
    }
}

/// Creates a file that only we may read and append to. Nothing must have its name yet, not even a symbolic link.
pub fn create_new_private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().append(true).create_new(true).mode(0o600).open(path)
}

/// Takes room for a file beyond its end, without making it longer. An error where the file system cannot or is full.
pub fn reserve(file: &File, from: u64, length: u64) -> io::Result<()> {
    fallocate(file, nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE, from, length)
}

/// Gives it back.
pub fn release(file: &File, from: u64, length: u64) {
    // Where it cannot be given back, the file keeps it, which costs room and nothing else.
    drop(make_hole(file, from, length));
}

/// Gives back the room of a part of a file, which reads as zeros then; nothing moves. An error where the file system cannot.
pub fn make_hole(file: &File, from: u64, length: u64) -> io::Result<()> {
    use nix::fcntl::FallocateFlags;
    let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE | FallocateFlags::FALLOC_FL_PUNCH_HOLE;
    fallocate(file, flags, from, length)
}

fn fallocate(file: &File, flags: nix::fcntl::FallocateFlags, from: u64, length: u64) -> io::Result<()> {
    let number = |n: u64| libc::off_t::try_from(n).map_err(io::Error::other);
    nix::fcntl::fallocate(file, flags, number(from)?, number(length)?).map_err(io::Error::from)
}

/// Takes the exclusive lock of a file if nobody holds it; the lock goes with the returned file. A symbolic link in the
/// place of the file is an error: in a folder that others may write to, it could lead anywhere.
pub fn try_lock(path: &Path) -> io::Result<Option<File>> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    exclusive(options.open(path)?)
}

/// The same for a folder that exists.
pub fn try_lock_folder(path: &Path) -> io::Result<Option<File>> {
    exclusive(open_folder(path)?)
}

fn exclusive(file: File) -> io::Result<Option<File>> {
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Takes a share in the lock of a folder: as long as the returned file is open, in whichever process, nobody gets it
/// exclusively. The kernel lets go of it however we die.
pub fn share_lock_of_folder(path: &Path) -> io::Result<File> {
    let file = open_folder(path)?;
    match file.try_lock_shared() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

fn open_folder(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY).open(path)
}

/// Bytes that we may still write on the file system of `path`.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// Soft and hard limit of open files.
pub fn open_files_limit() -> io::Result<(u64, u64)> {
    Ok(nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?)
}

/// Soft and hard limit of processes of this user.
pub fn processes_limit() -> io::Result<(u64, u64)> {
    Ok(nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NPROC)?)
}

/// Clock ticks per second, the unit of start times.
pub fn ticks_per_second() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .and_then(|ticks| u64::try_from(ticks).ok())
        .filter(|ticks| *ticks > 0)
        .unwrap_or(100)
}

/// A device number as `stat` gives it.
pub fn device(major: u32, minor: u32) -> u64 {
    libc::makedev(major, minor)
}

/// Sets a name that `ps` and `/proc/PID/comm` show.
pub fn set_own_name(name: &std::ffi::CStr) -> io::Result<()> {
    nix::sys::prctl::set_name(name).map_err(io::Error::from)
}

/// Makes standard input empty.
pub fn stdin_to_null() -> io::Result<()> {
    nix::unistd::dup2_stdin(File::open("/dev/null")?).map_err(io::Error::from)
}

/// Whether a plain TCP socket, without any option and without listening, can be bound to this address. `AddrInUse` is
/// the answer "no"; other errors are errors. Not `std::net::TcpListener`: it sets SO_REUSEADDR, with which the bind
/// succeeds beside a server that is still loading, and then makes *that server's* later listen() fail.
pub fn can_bind(address: std::net::SocketAddrV4) -> io::Result<bool> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let probe = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: a zeroed sockaddr_in is valid, and the pointer and the length describe this live local.
    let done = unsafe {
        let mut raw: libc::sockaddr_in = std::mem::zeroed();
        raw.sin_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default();
        raw.sin_port = address.port().to_be();
        raw.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
        let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_in>()).unwrap_or_default();
        libc::bind(probe.as_raw_fd(), (&raw const raw).cast(), length)
    };
    if done == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::AddrInUse { Ok(false) } else { Err(error) }
}

/// Asks the kernel's socket diagnosis (netlink) and returns the answer's blocks one after the other. `is_last` says
/// whether a block ends the answer.
pub fn socket_diagnosis(request: &[u8], is_last: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
    let kind = SockType::Datagram;
    let netlink =
        socket(AddressFamily::Netlink, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    send(netlink.as_raw_fd(), request, MsgFlags::empty())?;
    let mut answer = Vec::new();
    let mut block = vec![0; 32 * 1024];
    loop {
        // The kernel answers at once or not at all; a preflight must not wait for one that does not.
        if !poll(&[Interest { fd: netlink.as_fd(), write: false }], Duration::from_secs(1))?.contains(&true) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let length = recv(netlink.as_raw_fd(), &mut block, MsgFlags::empty())?;
        answer.extend_from_slice(&block[..length]);
        if length == 0 || is_last(&block[..length]) {
            return Ok(answer);
        }
    }
}
