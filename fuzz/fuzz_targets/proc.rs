//! What the kernel says as text or in a netlink answer: readers never panic; the two readers of `/proc/PID/stat` agree; a line
//! that is put together from values gives the values back; a tree is what a slow walk finds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;
use varcas_guard::health::process::{self, parse_io, parse_status, parse_wchan, select_tree};
use varcas_guard::health::system::{
    KernelLine, group_folder, kernel_lines, meminfo, memory_group, parse_oom_kills, xid_clue,
};
use varcas_guard::supervisor::port::{Row, conflicts, parse_tcp};
use varcas_guard::supervisor::proc::{parse_stat, variable};
use varcas_guard_fuzz::amplified;

/// The room that `port/diag.rs` expects around it, with a kernel that answers what the fuzzer wants.
mod supervisor {
    pub mod os {
        use std::cell::RefCell;

        thread_local! {
            pub static ANSWER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }

        pub fn socket_diagnosis(request: &[u8], is_last: impl Fn(&[u8]) -> bool) -> std::io::Result<Vec<u8>> {
            assert_eq!(request.len(), 72);
            ANSWER.with_borrow(|answer| {
                is_last(answer);
                Ok(answer.clone())
            })
        }
    }
}

#[path = "../../src/supervisor/port/diag.rs"]
mod diag;

fn stats(data: &[u8]) {
    let ours = parse_stat(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let theirs = process::parse_stat(text);
    if let (Some(ours), Ok(theirs)) = (&ours, &theirs) {
        assert_eq!(
            (ours.id, &ours.comm, ours.state, ours.ppid, ours.pgrp, ours.session, ours.threads),
            (
                theirs.proc,
                &theirs.comm,
                theirs.state,
                theirs.ppid,
                theirs.pgrp,
                theirs.session,
                theirs.threads
            )
        );
    }
    // The sampler wants more fields; what it can read the supervisor must see.
    assert!(ours.is_some() || theirs.is_err(), "{text}");
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A line as the kernel prints it.
fn round_trip(data: &[u8]) {
    let Some((head, comm)) = data.split_at_checked(24) else { return };
    let comm: Vec<u8> = comm.iter().copied().filter(|byte| *byte != 0).take(15).collect();
    let pid = i32::try_from(number(&head[..3])).expect("24 bits");
    let (start, threads, rss) = (number(&head[3..11]), number(&head[11..13]), number(&head[13..16]));
    let (ppid, pgrp) = (i32::from(head[16]), i32::from(head[17]) - 1);
    let state = [b'R', b'S', b'D', b'Z', b'T'][usize::from(head[18]) % 5];
    let mut line = format!("{pid} (").into_bytes();
    line.extend_from_slice(&comm);
    line.extend_from_slice(
        format!(") {} {ppid} {pgrp} {pgrp} 0 -1 4194304 1 0 0 0 ", char::from(state)).as_bytes(),
    );
    line.extend_from_slice(
        format!("5 6 7 8 20 0 {threads} 0 {start} 1000 {rss} 184467440 1 1 0 0 0 0 0 1").as_bytes(),
    );
    line.extend_from_slice(b" 2 0 0 0 17 1 0 0 0 0 0 1 2 3 4 5 6 7 139\n");
    let stat = parse_stat(&line).expect("the kernel's line is read");
    assert_eq!((stat.id.pid, stat.id.start, stat.threads), (pid, start, threads));
    assert_eq!((stat.ppid, stat.pgrp, stat.exit_status), (ppid, pgrp, 139));
    assert_eq!(stat.comm, String::from_utf8_lossy(&comm));
    let text = String::from_utf8_lossy(&line);
    let stat = process::parse_stat(&text).expect("the kernel's line is read");
    assert_eq!((stat.proc.pid, stat.proc.start, stat.ticks, stat.rss_pages), (pid, start, 26, rss));
    stats(&line);
}

/// The tree by asking for each process whether an ancestor is the root.
fn trees(data: &[u8]) {
    let base =
        process::parse_stat("1 (x) R 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 1 1 1 1").expect("it is whole");
    let all: Vec<process::Stat> = data
        .chunks_exact(3)
        .take(40)
        .map(|bytes| {
            let mut stat = base.clone();
            (stat.proc.pid, stat.ppid, stat.pgrp) =
                (i32::from(bytes[0] % 32), i32::from(bytes[1] % 32), i32::from(bytes[2] % 8));
            stat
        })
        .collect();
    let (root, pgrp) =
        (i32::from(data.first().copied().unwrap_or(0) % 32), (data.len() % 3 > 0).then_some(1));
    let seeds: BTreeSet<i32> =
        all.iter().filter(|s| Some(s.pgrp) == pgrp).map(|s| s.proc.pid).chain([root]).collect();
    let mut wanted = seeds;
    for _ in 0..all.len() {
        wanted
            .extend(all.iter().filter(|s| wanted.contains(&s.ppid)).map(|s| s.proc.pid).collect::<Vec<_>>());
    }
    let expected: Vec<_> = all.iter().filter(|s| wanted.contains(&s.proc.pid)).cloned().collect();
    assert_eq!(select_tree(all, root, pgrp), expected);
}

fuzz_target!(|data: &[u8]| {
    stats(data);
    round_trip(data);
    trees(data);
    let text = String::from_utf8_lossy(data);
    let status = parse_status(&text);
    assert!(status.ns_pids.len() <= text.len());
    let _ = parse_io(&text);
    parse_wchan(&text);
    for line in kernel_lines(&text) {
        match line {
            KernelLine::Oom(kill) => assert!(text.contains(&kill.text) && text.contains(&kill.comm)),
            KernelLine::Xid { number, text: line } => {
                assert!(text.contains(&line));
                xid_clue(number, "x", Some(&line));
            }
        }
    }
    parse_oom_kills(&text);
    if let Some((version, path)) = memory_group(&text) {
        group_folder(&text, version, path);
        // A path that climbs is never followed, unless what is mounted lies as high.
        let climbed = group_folder(&text, version, "/../zz9zz");
        let known = |folder: &str| text.contains("zz9zz") || (text.contains(" /.. ") && folder.ends_with("/zz9zz"));
        assert!(climbed.is_none_or(|folder| !folder.contains("zz9zz") || known(&folder)));
    }
    meminfo(&text, "MemTotal");
    let rows = parse_tcp(&text);
    assert!(rows.len() < text.lines().count().max(1));
    for row in &rows {
        conflicts(row.address);
    }
    if let Some(value) = variable(data, "VARCAS_RUN_ID") {
        assert!(!value.contains(&0));
    }
    supervisor::os::ANSWER.with_borrow_mut(|answer| {
        answer.clear();
        answer.extend_from_slice(data);
    });
    let port = u16::try_from(number(data) & 0xffff).expect("16 bits");
    assert!(diag::bound_sockets(port).iter().all(|row| row.port == port));
    if let Some(long) = amplified(data) {
        let text = String::from_utf8_lossy(&long);
        parse_status(&text);
        kernel_lines(&text).for_each(drop);
        parse_tcp(&text);
        memory_group(&text);
        group_folder(&text, 1, "/x");
    }
});
