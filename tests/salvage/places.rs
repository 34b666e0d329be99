//! Where halves lie, which belong together, and what is left alone.

use crate::common::*;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use varcas_guard::recovery::salvage::{Options, Status, salvage, salvage_folder};

fn into(out: &Path) -> Options<'static> {
    Options { out: Some(out.to_owned()), ..Options::default() }
}

const BINARY: &str = env!("CARGO_BIN_EXE_varcas-guard");

#[test]
fn a_complete_temporary_file_beats_its_unfinished_gzip() {
    let bench = Bench::new();
    let text = fixture("torch2.10");
    let raw = zip(&text);
    bench.put("tmp/tmpab12.json", &text);
    bench.put("traces/host_1.77.pt.trace.json.gz", &raw[..raw.len() / 2]);
    let out = bench.path("out");
    let records = salvage(&[bench.path("traces"), bench.path("tmp")], &into(&out));
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0].status, Status::Repaired);
    assert_eq!(records[0].input, bench.path("tmp/tmpab12.json"));
    assert_eq!(records[0].output, Some(out.join("host_1.77.salvaged.pt.trace.json.gz")));
    assert_eq!(events(&read(&out.join("host_1.77.salvaged.pt.trace.json.gz"))).len(), spans(&text).len());
}

#[test]
fn an_empty_gzip_is_paired_with_the_temporary_file_of_its_process() {
    let bench = Bench::new();
    let (one, two) = (fixture("torch2.9"), fixture("torch2.10"));
    let pid = |text: &[u8]| read_pid(text);
    for (name, text) in [("a", &one), ("b", &two)] {
        bench.put(&format!("tmp/tmp{name}.json.tmp"), &text[..text.len() / 2]);
        bench.put(&format!("tmp/tmp{name}.json"), b"");
        bench.put(&format!("traces/host_{}.{name}.pt.trace.json.gz", pid(text)), b"");
    }
    let records = salvage(&[bench.folder.path().to_owned()], &Options::default());
    assert_eq!(records.len(), 2, "{records:?}");
    for (name, text) in [("a", &one), ("b", &two)] {
        let output = bench.path(&format!("traces/host_{}.{name}.salvaged.pt.trace.json.gz", pid(text)));
        let record = records.iter().find(|record| record.output.as_ref() == Some(&output)).unwrap();
        assert_eq!(record.input, bench.path(&format!("tmp/tmp{name}.json.tmp")));
        assert_eq!(record.status, Status::Salvaged);
    }
}

fn read_pid(text: &[u8]) -> String {
    serde_json::from_slice::<serde_json::Value>(&text[spans(text)[0].clone()]).expect("an event")["pid"]
        .to_string()
}

#[test]
fn the_tmp_file_beside_an_empty_json_is_taken() {
    let bench = Bench::new();
    let text = fixture("torch2.13");
    bench.put("w.pt.trace.json", b"");
    bench.put("w.pt.trace.json.tmp", &text[..text.len() / 3]);
    let records = salvage(&[bench.folder.path().to_owned()], &Options::default());
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].output, Some(bench.path("w.salvaged.pt.trace.json.gz")));
}

#[test]
fn halves_of_our_own_windows_are_found_under_their_hidden_names() {
    let bench = Bench::new();
    let text = fixture("torch2.10");
    bench.put(".window-0001-rank0.pt.trace.json.part.tmp", &text[..text.len() / 2]);
    let other = fixture("torch2.13");
    bench.put(".window-0002-rank0.pt.trace.json.part", &other);
    bench.put("window-0003-rank0.pt.trace.json.gz", &zip(&fixture("torch2.9")));
    bench.put(".window-0003-rank0.pt.trace.json.part.tmp", &fixture("torch2.9")[..5000]);
    bench.put(".other.salvaged.pt.trace.json.gz.7.part", &text);
    bench.put(".hidden.json", &text);
    let whole = [bench.path("window-0003-rank0.pt.trace.json.gz")];
    let folder = bench.folder.path().to_owned();
    let saved = salvage_folder(std::slice::from_ref(&folder), &folder, &whole);
    let told: Vec<_> = saved.iter().map(|saved| (saved.file.as_deref().unwrap(), &*saved.status)).collect();
    assert_eq!(
        told,
        [
            ("window-0001-rank0.salvaged.pt.trace.json.gz", "salvaged"),
            ("window-0002-rank0.salvaged.pt.trace.json.gz", "repaired"),
        ]
    );
    assert_eq!(saved[1].events, spans(&other).len() as u64);
}

#[test]
fn a_file_that_is_read_by_a_process_that_writes_another_half_is_left_alone() {
    let bench = Bench::new();
    let read_by_it = bench.put("tmp/tmpab12.json", &fixture("torch2.10"));
    let free = bench.put("tmp/tmpcd34.json", &fixture("torch2.9"));
    bench.put("traces/w.pt.trace.json.gz", b"");
    // As torch does when it compresses. Nothing says which of the two becomes the .gz.
    let mut writer = hold(&bench, "exec 3<tmp/tmpab12.json 4>>traces/w.pt.trace.json.gz");
    let records = salvage(&[bench.folder.path().to_owned()], &Options::default());
    let of = |path: &Path| records.iter().find(|record| record.input == path).unwrap();
    assert!(of(&read_by_it).error.is_some() && of(&read_by_it).output.is_none(), "{records:?}");
    assert_eq!((of(&free).status, &of(&free).error), (Status::Repaired, &None));
    let_go(&mut writer);
    let records = salvage(&[read_by_it], &Options::default());
    assert_eq!((records.len(), records[0].status), (1, Status::Repaired), "{records:?}");
}

/// A shell that has files open until it is let go.
fn hold(bench: &Bench, opens: &str) -> Child {
    let mut shell = Command::new("sh")
        .args(["-c", &format!("{opens}; echo ready; read wait")])
        .current_dir(bench.folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start a shell");
    let mut ready = [0; 6];
    shell.stdout.as_mut().expect("its output").read_exact(&mut ready).expect("it is ready");
    shell
}

fn let_go(shell: &mut Child) {
    drop(shell.stdin.take());
    shell.wait().expect("its end");
}

#[test]
fn a_file_that_a_live_process_writes_is_not_read() {
    let bench = Bench::new();
    let text = fixture("torch2.9");
    let path = bench.put("w.pt.trace.json.tmp", &text[..9000]);
    let mut writer = hold(&bench, "exec 3>>w.pt.trace.json.tmp");
    let records = salvage(std::slice::from_ref(&path), &Options::default());
    assert!(records[0].error.as_ref().unwrap().contains(&format!("pid {}", writer.id())), "{records:?}");
    assert_eq!(records[0].output, None);
    let_go(&mut writer);
    assert_eq!(salvage(&[path], &Options::default())[0].status, Status::Salvaged);
}

#[test]
fn a_second_salvage_writes_the_same_bytes_and_originals_are_untouched() {
    let bench = Bench::new();
    let text = fixture("torch2.10");
    let half = bench.put("w.pt.trace.json", &text[..text.len() / 2]);
    let first = salvage(&[bench.folder.path().to_owned()], &Options::default());
    let output = first[0].output.clone().unwrap();
    let bytes = fs::read(&output).unwrap();
    let second = salvage(&[bench.folder.path().to_owned()], &Options::default());
    assert_eq!(first, second);
    assert_eq!(fs::read(&output).unwrap(), bytes);
    assert_eq!(fs::read(half).unwrap(), &text[..text.len() / 2]);
    assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), 2);
}

#[test]
fn in_place_gives_the_output_the_name_and_keeps_the_broken_file() {
    let bench = Bench::new();
    let raw = zip(&fixture("torch2.10"));
    let path = bench.put("w.pt.trace.json.gz", &raw[..raw.len() / 2]);
    let options = Options { in_place: true, ..Options::default() };
    let records = salvage(std::slice::from_ref(&path), &options);
    assert_eq!(records[0].output, Some(path.clone()));
    assert!(events(&read(&path)).len() > 100);
    assert_eq!(fs::read(bench.path("w.pt.trace.json.gz.broken")).unwrap(), &raw[..raw.len() / 2]);
    assert_eq!(salvage(&[path], &options)[0].status, Status::Complete);
}

#[test]
fn check_writes_nothing_and_exits_1_for_a_broken_trace() {
    let bench = Bench::new();
    let text = fixture("torch2.10");
    let whole = bench.put("whole.pt.trace.json", &text);
    let cut = bench.put("cut.pt.trace.json", &text[..text.len() / 2]);
    let check = |path: &PathBuf| {
        Command::new(BINARY).args(["salvage", "--check", "--json"]).arg(path).output().unwrap()
    };
    assert_eq!(check(&whole).status.code(), Some(0));
    let output = check(&cut);
    assert_eq!(output.status.code(), Some(1));
    let records: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys = [
        "input",
        "output",
        "status",
        "events_kept",
        "events_dropped",
        "bytes_read",
        "bytes_lost",
        "missing_categories",
        "note",
    ];
    assert!(keys.iter().all(|key| records[0].get(*key).is_some()), "{records}");
    assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), 2);
}

#[test]
fn the_command_salvages_and_exits_0() {
    let bench = Bench::new();
    let text = fixture("torch2.10");
    let cut = bench.put("cut.pt.trace.json", &text[..text.len() / 2]);
    let output =
        Command::new(BINARY).arg("salvage").arg(&cut).arg("--out").arg(bench.path("o")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("salvaged"));
    read(&bench.path("o/cut.salvaged.pt.trace.json.gz"));
}

#[test]
fn a_name_cannot_break_the_table_and_what_is_no_trace_is_called_so() {
    let bench = Bench::new();
    let odd = bench.put("a\n\u{1b}[2Jb.json", b"hello");
    let output = Command::new(BINARY).arg("salvage").arg(&odd).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.contains("a??[2Jb.json") && text.contains("this is no trace"), "{text}");
}

#[test]
fn other_json_in_a_folder_and_empty_files_do_no_harm() {
    let bench = Bench::new();
    bench.put("config.json", b"{\"model\": \"tiny\"}");
    bench.put("deep/er/benchmark.json", b"[1, 2]");
    bench.put("w.pt.trace.json.gz", b"");
    let records = salvage(&[bench.folder.path().to_owned()], &Options::default());
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!((records[0].status, &records[0].error), (Status::NothingToSave, &None));
}

#[test]
fn a_full_disk_leaves_no_half_output() {
    let bench = Bench::new();
    let text = fixture("torch2.10");
    let cut = bench.put("cut.pt.trace.json", &text[..text.len() / 2]);
    // A limit on the size of files is met by the same write error as a full disk.
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 1; trap '' XFSZ; exec \"$0\" salvage --json \"$1\""])
        .arg(BINARY)
        .arg(&cut)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let records: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(records[0]["error"].as_str().unwrap().contains("cannot write"), "{records}");
    assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), 1);
}

#[test]
fn what_a_killed_salvage_left_is_swept_but_not_what_a_live_one_writes() {
    let bench = Bench::new();
    let text = fixture("torch2.10");
    let cut = bench.put("cut.pt.trace.json", &text[..text.len() / 2]);
    let stale = bench.put(".cut.salvaged.pt.trace.json.gz.1.part", b"half");
    let live = bench.put(".cut.salvaged.pt.trace.json.gz.2.part", b"half");
    let lock = File::options().write(true).open(&live).unwrap();
    lock.lock().unwrap();
    assert_eq!(salvage(&[cut], &Options::default())[0].status, Status::Salvaged);
    assert!(!stale.exists());
    assert!(live.exists());
}

#[test]
fn a_salvage_that_is_killed_leaves_no_half_under_the_final_name() {
    let bench = Bench::new();
    let text = fixture("torch2.10");
    let (list, end) = (spans(&text)[0].start, spans(&text).last().unwrap().end);
    let many = [&text[..list], &[&text[list..end], b","].concat().repeat(400)].concat();
    let cut = bench.put("cut.pt.trace.json", &many);
    let (part, output) = (
        |pid: u32| bench.path(&format!(".cut.salvaged.pt.trace.json.gz.{pid}.part")),
        bench.path("cut.salvaged.pt.trace.json.gz"),
    );
    let mut child = Command::new(BINARY).arg("salvage").arg(&cut).stdout(Stdio::null()).spawn().unwrap();
    let half = part(child.id());
    while !half.exists() && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(half.exists() && !output.exists(), "it was too fast to be killed");
    let records = salvage(&[cut], &Options::default());
    assert_eq!((records[0].status, records[0].output.as_ref()), (Status::Salvaged, Some(&output)));
    assert_eq!(events(&read(&output)).iter().filter(|event| event["ph"] == "X").count() % 400, 0);
    assert!(!half.exists());
}

#[test]
fn two_traces_of_one_name_do_not_overwrite_each_other() {
    let bench = Bench::new();
    for (folder, name) in [("a", "torch2.9"), ("b", "torch2.10")] {
        let text = fixture(name);
        bench.put(&format!("{folder}/w.pt.trace.json"), &text[..text.len() / 2]);
    }
    let records = salvage(&[bench.path("a"), bench.path("b")], &into(&bench.path("out")));
    assert_eq!(records.len(), 2);
    assert_ne!(records[0].output, records[1].output);
    assert!(records.iter().all(|record| record.output.as_ref().unwrap().exists()));
}
