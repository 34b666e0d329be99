//! How long a report takes and how large it becomes: `cargo run --release --example report_scale [EVENTS] [ATTEMPTS] [FOLDER]`
//! writes a made-up journal of a long night into the folder (or a temporary one) and makes its report as `varcas-guard report` does.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made may panic")]

#[path = "../tests/report_support/mod.rs"]
mod report_support;

use std::io::Write;
use varcas_guard::cli::report;
use varcas_guard::recovery::report::html;
use varcas_guard::supervisor::layout::RunDir;
use varcas_guard::time::instant_now;

fn main() {
    let mut words = std::env::args().skip(1);
    let mut number = |default| words.next().map_or(default, |word| word.parse::<usize>().unwrap());
    let (events, attempts) = (number(report_support::NIGHT.0), number(report_support::NIGHT.1));
    let temporary = tempfile::tempdir().unwrap();
    let folder = words.next().map_or(temporary.path().to_owned(), std::path::PathBuf::from);
    std::fs::create_dir_all(&folder).unwrap();
    let dir = RunDir::new(&folder);
    let story = report_support::long(events, attempts);
    let mut file = std::io::BufWriter::new(std::fs::File::create(dir.journal()).unwrap());
    for event in &story.events {
        serde_json::to_writer(&mut file, event).unwrap();
        file.write_all(b"\n").unwrap();
    }
    file.into_inner().unwrap().sync_all().unwrap();
    let megabytes = std::fs::metadata(dir.journal()).unwrap().len() as f64 / 1e6;
    println!("{} events, {attempts} attempts, {megabytes:.0} MB of journal", story.events.len());
    let began = instant_now();
    let (model, series) = {
        let model = varcas_guard::recovery::report::model::build(&story.events);
        (model, varcas_guard::recovery::report::series::of(&story.events))
    };
    let built = began.elapsed();
    let began = instant_now();
    let page = html::render(&varcas_guard::recovery::report::View::new(&model, &series));
    println!(
        "from events in memory: model and series {built:.2?}, page {:.2?}, {} bytes",
        began.elapsed(),
        page.len()
    );
    drop((story, model, series, page));
    for round in 1..=5 {
        let began = instant_now();
        let told = report::of_run(&dir).unwrap();
        let read = began.elapsed();
        report::write(&dir, &told).unwrap();
        let size = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().len();
        println!(
            "round {round}: journal read and summed up {read:.2?}, with all three files written {:.2?}; html {} bytes, json {} bytes, peak RSS {}",
            began.elapsed(),
            size(dir.report_html()),
            size(dir.report_json()),
            peak()
        );
    }
}

fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("?").trim().to_owned()
}
