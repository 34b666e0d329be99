//! What the kernel and the driver write about failures, as text: out-of-memory kills, GPU errors, counters of a control
//! group. Pure; `deaths.rs` reads the sources.

use crate::event::Clue;

/// A process that the kernel killed for want of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OomKill {
    /// Its pid as the kernel knows it: inside a container ours differs.
    pub pid: i32,
    /// Its command name.
    pub comm: String,
    /// The kernel's line.
    pub text: String,
}

/// A line of the kernel that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelLine {
    /// mm/oom_kill.c: `Out of memory: Killed process 7 (python3) total-vm:...`, with `Memory cgroup` before it, or with
    /// `Killed` alone when the memory of a control group or of a machine is meant by the line before.
    Oom(OomKill),
    /// `NVRM: Xid (PCI:0000:9c:00): 79, pid=1146, GPU has fallen off the bus.`
    Xid {
        /// The number.
        number: u64,
        /// The kernel's line.
        text: String,
    },
}

/// Reads records of `/dev/kmsg` (`priority,sequence,microseconds,flags;text`) and lines of `dmesg`. Lines that begin with a
/// blank continue a record with keys and values.
pub fn kernel_lines(text: &str) -> impl Iterator<Item = KernelLine> + '_ {
    text.lines().filter(|line| !line.starts_with(' ')).filter_map(|line| {
        let message = match line.split_once(';') {
            Some((head, message)) if head.bytes().all(|b| b.is_ascii_digit() || b",-c".contains(&b)) => {
                message
            }
            _ => line,
        };
        oom_kill(message).map(KernelLine::Oom).or_else(|| xid(message))
    })
}

fn oom_kill(message: &str) -> Option<OomKill> {
    let (before, rest) = message.split_once("Killed process ")?;
    // `Out of memory: ` and `Memory cgroup out of memory: `; `Out of memory (oom_kill_allocating_task): `.
    before.to_ascii_lowercase().contains("out of memory").then_some(())?;
    let (pid, rest) = rest.split_once(" (")?;
    // The name may hold parentheses; the figures behind it do not.
    let end = rest.find(") total-vm").or_else(|| rest.rfind(')'))?;
    Some(OomKill { pid: pid.parse().ok()?, comm: rest[..end].to_owned(), text: message.to_owned() })
}

fn xid(message: &str) -> Option<KernelLine> {
    let (_, rest) = message.split_once("NVRM: Xid (")?;
    let (_, rest) = rest.split_once("): ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some(KernelLine::Xid { number: rest[..digits].parse().ok()?, text: message.to_owned() })
}

/// The class a GPU error speaks for and what it means, by NVIDIA's catalogue of Xid errors. `None` for those that only
/// follow from something else or announce it.
fn xid_meaning(number: u64) -> Option<(&'static str, &'static str)> {
    const LOST: &str = "xid-gpu-lost";
    const PROGRAM: &str = "cuda-illegal-access";
    Some(match number {
        13 => (PROGRAM, "graphics engine exception, usually of the program"),
        31 => (PROGRAM, "memory page fault, usually of the program"),
        43 => (PROGRAM, "the GPU stopped processing for a fault of the program"),
        48 => (LOST, "uncorrectable double-bit memory error"),
        62 => (LOST, "the GPU's micro-controller halted"),
        63 => (LOST, "a memory row was or will be remapped"),
        64 => (LOST, "remapping of a memory row failed"),
        74 => (LOST, "NVLink error"),
        79 => (LOST, "the GPU has fallen off the bus"),
        92 => (LOST, "high rate of single-bit memory errors"),
        94 => (LOST, "contained uncorrectable memory error"),
        95 => (LOST, "uncontained uncorrectable memory error"),
        110 => (LOST, "security fault of the GPU"),
        119 => (LOST, "the GPU's system processor did not answer"),
        120 => (LOST, "error of the GPU's system processor"),
        140 => (LOST, "unrecovered memory error"),
        // 45: clean-up after a process with work on the GPU has died. 154: advice on how to recover.
        45 | 154 => return None,
        _ => (LOST, "not known to this version of varcas-guard"),
    })
}

/// What a GPU error means. `text` is the kernel's line; without one the number and its meaning are told.
pub fn xid_clue(number: u64, source: &str, text: Option<&str>) -> Option<Clue> {
    let (cause, meaning) = xid_meaning(number)?;
    Some(Clue {
        cause: cause.to_owned(),
        proc: None,
        inferred: meaning.starts_with("not known"),
        source: source.to_owned(),
        text: match text {
            Some(text) => format!("{text} ({meaning})"),
            None => format!("Xid {number}: {meaning}"),
        },
    })
}

/// `oom_kill` of `memory.events` (control groups, version 2) or of `memory.oom_control` (version 1): processes of the
/// group that the kernel killed for want of memory.
pub fn parse_oom_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

/// Version and path of the memory group in `/proc/PID/cgroup`. Version 1 wins where both are mounted, as the controller
/// can be in one only.
pub fn memory_group(text: &str) -> Option<(u8, &str)> {
    let fields = || {
        text.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            Some((parts.next()?, parts.next()?))
        })
    };
    let v1 = fields().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
    let v2 = || fields().find(|(controllers, _)| controllers.is_empty());
    v1.map(|(_, path)| (1, path)).or_else(|| v2().map(|(_, path)| (2, path)))
}

/// The folder of that group, by the mounts in `/proc/PID/mountinfo`. In a container the mount's root is often the group
/// itself, and the path in `/proc/PID/cgroup` lies above what is mounted.
pub fn group_folder(mountinfo: &str, version: u8, path: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let wanted = match kind.next()? {
            "cgroup" => version == 1 && kind.nth(1)?.split(',').any(|option| option == "memory"),
            "cgroup2" => version == 2,
            _ => false,
        };
        if !wanted {
            return None;
        }
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let below = if root == "/" { Some(path) } else { path.strip_prefix(root) };
        // A group beside the mount's root may begin with the same letters.
        let below = below.filter(|below| below.starts_with('/') && !below.contains("..")).unwrap_or("");
        Some(format!("{point}{}", below.trim_end_matches('/')))
    })
}

/// A figure of `/proc/meminfo` in bytes.
pub fn meminfo(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KMSG: &str = "6,339,5140900,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.1\n\
        4,812,918273114233,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,task=VLLM::EngineCor,pid=71,uid=0\n\
        3,813,918273114301,-;Memory cgroup out of memory: Killed process 71 (VLLM::EngineCor) total-vm:98231104kB, \
        anon-rss:62914560kB, file-rss:0kB, shmem-rss:131072kB, UID:0 pgtables:130212kB oom_score_adj:985\n\
        3,814,918273200000,c;Out of memory: Killed process 7 (a (b) c) total-vm:1kB, anon-rss:1kB\n \
        SUBSYSTEM=pci\n DEVICE=Out of memory: Killed process 8 (x) total-vm:1kB\n\
        4,815,918274000000,-;NVRM: Xid (PCI:0000:9c:00): 79, pid=1146, GPU has fallen off the bus.\n\
        6,816,918275000000,-;NVRM: Xid (PCI:0000:9c:00): pid=1146\n";

    #[test]
    fn kills_and_gpu_errors_are_found_in_records_and_nothing_else_is() {
        let lines: Vec<_> = kernel_lines(KMSG).collect();
        let [KernelLine::Oom(first), KernelLine::Oom(second), KernelLine::Xid { number, text }] = &lines[..]
        else {
            panic!("{lines:#?}")
        };
        assert_eq!((first.pid, first.comm.as_str()), (71, "VLLM::EngineCor"));
        assert_eq!((second.pid, second.comm.as_str()), (7, "a (b) c"));
        assert_eq!(*number, 79);
        assert!(text.starts_with("NVRM: Xid") && text.ends_with("bus."), "{text}");
    }

    #[test]
    fn lines_of_dmesg_are_read_too() {
        let text = "[ 4123.114301] Out of memory: Killed process 12 (python3) total-vm:9kB";
        assert!(matches!(kernel_lines(text).next(), Some(KernelLine::Oom(OomKill { pid: 12, .. }))));
        // A semicolon of the message is not the end of a record's head.
        let text = "[ 1.0] a; NVRM: Xid (PCI:0000:9c:00): 31, pid=1";
        assert!(matches!(kernel_lines(text).next(), Some(KernelLine::Xid { number: 31, .. })));
    }

    #[test]
    fn a_fault_of_the_program_is_told_from_a_lost_gpu_and_a_clean_up_means_nothing() {
        let clue = xid_clue(31, "/dev/kmsg", Some("NVRM: Xid 31")).unwrap();
        assert_eq!((clue.cause.as_str(), clue.inferred), ("cuda-illegal-access", false));
        assert_eq!(xid_clue(79, "NVML", None).unwrap().text, "Xid 79: the GPU has fallen off the bus");
        assert!(xid_clue(9999, "NVML", None).unwrap().inferred);
        assert_eq!((xid_clue(45, "NVML", None), xid_clue(154, "NVML", None)), (None, None));
    }

    /// The log rules and the driver's events must not disagree on which errors lose a GPU.
    #[test]
    fn every_xid_that_is_fatal_in_the_log_loses_the_gpu_here() {
        for number in [48, 62, 63, 64, 74, 79, 92, 94, 95, 110, 119, 120, 140] {
            let clue = xid_clue(number, "NVML", None).unwrap();
            assert_eq!((clue.cause.as_str(), clue.inferred), ("xid-gpu-lost", false), "{number}");
            let line = format!("[ 1.0] NVRM: Xid (PCI:0000:9c:00): {number}, pid=1");
            let rules = crate::health::log_rules::Rules::builtin();
            let rule = rules.rules().iter().find(|rule| rule.id == "xid-fatal").unwrap();
            assert!(regex::Regex::new(&rule.pattern).unwrap().is_match(&line), "{number}");
        }
    }

    #[test]
    fn every_fault_of_a_program_is_its_own_and_what_only_follows_means_nothing() {
        for number in [13, 31, 43] {
            let clue = xid_clue(number, "NVML", None).unwrap();
            assert_eq!((clue.cause.as_str(), clue.inferred), ("cuda-illegal-access", false), "{number}");
        }
        assert!(xid_clue(45, "NVML", None).is_none() && xid_clue(154, "NVML", None).is_none());
        let unknown = xid_clue(999, "NVML", None).unwrap();
        assert_eq!((unknown.cause.as_str(), unknown.inferred), ("xid-gpu-lost", true));
    }

    #[test]
    fn the_counter_is_read_in_both_forms() {
        assert_eq!(parse_oom_kills("low 0\noom 4\noom_kill 3\noom_group_kill 1\n"), Some(3));
        assert_eq!(parse_oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), Some(2));
        assert_eq!(parse_oom_kills("oom_kill_disable 0\n"), None);
    }

    #[test]
    fn the_folder_of_the_memory_group_is_found_for_both_versions_and_in_a_container() {
        let v1 = "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n";
        assert_eq!(memory_group(v1), Some((1, "/a/b")));
        assert_eq!(memory_group("0::/user.slice/x\n"), Some((2, "/user.slice/x")));
        assert_eq!(memory_group("9:pids:/\n"), None);
        let mounts = "35 31 0:32 / /cg/memory rw shared:1 - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(group_folder(mounts, 1, "/a/b").as_deref(), Some("/cg/memory/a/b"));
        assert_eq!(group_folder(mounts, 2, "/").as_deref(), Some("/cg/unified"));
        let inside = "35 31 0:32 /docker/7 /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(group_folder(inside, 2, "/docker/7/x").as_deref(), Some("/sys/fs/cgroup/x"));
        assert_eq!(group_folder(inside, 2, "/../elsewhere").as_deref(), Some("/sys/fs/cgroup"));
        assert_eq!(group_folder(inside, 2, "/docker/70").as_deref(), Some("/sys/fs/cgroup"), "a neighbour");
        assert_eq!(group_folder(inside, 1, "/"), None);
        let above = inside.replace("/docker/7 ", "/.. ");
        assert_eq!(group_folder(&above, 2, "/../beside").as_deref(), Some("/sys/fs/cgroup/beside"));
    }

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(meminfo("MemTotal:  2 kB\nMemAvailable:  1 kB\n", "MemAvailable"), Some(1024));
        assert_eq!(meminfo("MemTotal:  2 kB\n", "Mem"), None);
        assert_eq!(meminfo("MemTotal:  18446744073709551615 kB\n", "MemTotal"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,200}", cut in 0usize..600) {
            let mut cut = cut.min(KMSG.len());
            while !KMSG.is_char_boundary(cut) { cut -= 1; }
            let text = format!("{}{text}", &KMSG[..cut]);
            kernel_lines(&text).for_each(drop);
            parse_oom_kills(&text);
            memory_group(&text);
            group_folder(&text, 1, &text);
            meminfo(&text, "MemTotal");
        }
    }
}
