//! The load as guard.toml describes it: what is accepted becomes a load, and every mistake is named before a server is asked.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::Path;
use std::time::Duration;
use varcas_guard::config::{Given, LoadPlan, Plan, plan};
use varcas_guard::workload::load::arrivals::Arrivals;
use varcas_guard::workload::load::compose::{self, Recipe};
use varcas_guard::workload::load::prompt::TokenModel;
use varcas_guard::workload::load::spec::{Api, Load, Target};

fn read(text: &str) -> Result<LoadPlan, Vec<String>> {
    let given = Given {
        file: Some(("guard.toml".to_owned(), text.to_owned())),
        check_load: Some(compose::check),
        ..Given::default()
    };
    plan(Plan::default(), &given).map(|plan| plan.load).map_err(|failure| failure.problems)
}

fn target(context: u32) -> Target {
    Target {
        base_url: "http://127.0.0.1:1".to_owned(),
        model: "m".to_owned(),
        max_model_len: context,
        context_detected: true,
        tokens: TokenModel::default(),
        api_key: None,
    }
}

fn load(text: &str) -> Load {
    let plan = read(text).unwrap();
    Recipe::read(&plan).unwrap().load(&target(4096), plan.seed, 1).unwrap()
}

/// A file in a folder that lives as long as the test.
fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn without_a_word_it_is_the_seeds_benchmark() {
    let load = load("");
    assert_eq!(load.schedule.mix.name, "mixed");
    assert_eq!(load.schedule.arrivals, Arrivals::Poisson { rate: 25.0 });
    assert_eq!((load.schedule.duration, load.temperature), (Duration::from_secs(120), 0.0));
    assert_eq!((load.api, load.max_concurrency, load.ignore_eos), (Api::Completions, None, false));
}

#[test]
fn the_example_of_the_readme_is_a_mix() {
    let readme = include_str!("../README.md");
    let (_, rest) = readme.split_once("```toml\n[[load.workload]]").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data = file(folder.path(), "prompts.jsonl", "{\"prompt\":\"How are you?\"}\n");
    let text = format!("[[load.workload]]{}", example.replace("prompts.jsonl", &data));
    let mix = load(&text).schedule.mix;
    assert_eq!(mix.problems(), Vec::<String>::new());
    let names: Vec<&str> = mix.workloads.iter().map(|w| w.name.as_str()).collect();
    assert_eq!(names, ["support", "talk", "real"]);
    assert_eq!(mix.workloads[2].examples[0].prompt, "How are you?");
    assert_eq!((mix.workloads[2].weight, mix.workloads[0].weight), (1.0, 3.0));
}

#[test]
fn every_key_of_the_load_reaches_it() {
    let load = load(
        "[load]\nduration = \"7s\"\nrate = 4\nmix = \"chat\"\narrivals = \"cyclic\"\namplitude = 0.5\nperiod = \"3s\"\n\
         endpoint = \"chat\"\nmax-concurrency = 9\nignore-eos = true\ntemperature = 0.5\nidle-timeout = \"8s\"\n\
         request-timeout = \"20s\"\ndrain = \"6s\"\nslo-ttft = \"300ms\"\nslo-tpot = \"40ms\"\nslo-e2el = \"5s\"\n",
    );
    assert_eq!(load.schedule.mix.name, "chat");
    assert_eq!(load.schedule.arrivals, Arrivals::Cyclic { rate: 4.0, amplitude: 0.5, period: 3.0 });
    assert_eq!((load.api, load.max_concurrency, load.ignore_eos), (Api::Chat, Some(9), true));
    assert_eq!((load.temperature, load.drain), (0.5, Duration::from_secs(6)));
    assert_eq!(
        (load.limits.total, load.limits.idle),
        (Duration::from_secs(20), Some(Duration::from_secs(8)))
    );
    let slo = (load.slo.ttft, load.slo.tpot, load.slo.e2el);
    let ms = |ms| Some(Duration::from_millis(ms));
    assert_eq!(slo, (ms(300), ms(40), ms(5000)));
    for (text, want) in [
        ("arrivals = \"constant\"", Arrivals::Constant { rate: 25.0 }),
        ("arrivals = \"gamma\"\nburstiness = 0.5", Arrivals::Gamma { rate: 25.0, burstiness: 0.5 }),
        (
            "arrivals = \"hawkes\"\nbranching = 0.3\ndecay = 4",
            Arrivals::Hawkes { rate: 25.0, branching: 0.3, decay: 4.0 },
        ),
        ("arrivals = \"ramp\"\nto-rate = 90", Arrivals::Ramp { from: 25.0, to: 90.0 }),
        ("arrivals = \"closed\"\nstreams = 3", Arrivals::Closed { streams: 3 }),
    ] {
        assert_eq!(self::load(&format!("[load]\n{text}\n")).schedule.arrivals, want);
    }
}

#[test]
fn mistakes_are_named_all_at_once_and_with_their_line() {
    let problems = read(
        "[load]\nrate = nan\narrivals = \"poison\"\nignore-eos = 1\n[[load.workload]]\nname = \"a\"\nwieght = 2\n\
         output = { dist = \"fixed\", tokens = 5 }\n[[load.workload]]\nname = \"b\"\noutput = { dist = \"zipf\" }\n",
    )
    .unwrap_err();
    let begins = [
        "guard.toml:2: `load.rate`: `nan` is out of range",
        "guard.toml:3: `load.arrivals`: `poison` is not one of poisson",
        "guard.toml:4: `load.ignore-eos`: must be true or false",
        "guard.toml:5: `load.workload`: unknown field `wieght`",
        "guard.toml:9: `load.workload`: unknown variant `zipf`",
    ];
    assert_eq!(problems.len(), begins.len(), "{problems:#?}");
    for (problem, begin) in problems.iter().zip(begins) {
        assert!(problem.starts_with(begin), "{problem}");
    }
}

#[test]
fn what_could_never_be_sent_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bad = file(folder.path(), "bad.jsonl", "{\"prompt\":\"a\"}\n{\"prompt\":\n");
    let empty = file(folder.path(), "empty.toml", "name = \"e\"\nworkload = []\n");
    let trace = file(folder.path(), "trace.json", "{\"prompts\":[]}");
    let output = "output = { dist = \"fixed\", tokens = 5 }\n";
    for (text, what) in [
        (format!("[[load.workload]]\nname = \"a\"\nweight = 0\n{output}"), "the weights sum to 0"),
        (format!("[[load.workload]]\nname = \"a\"\nweight = -1\n{output}"), "weight -1 must be"),
        (format!("[[load.workload]]\nname = \"a\"\ndataset = {bad:?}\n{output}"), "line 2 is not JSON"),
        (format!("[[load.workload]]\nname = \"a\"\ndataset = \"/nowhere\"\n{output}"), "read /nowhere"),
        (format!("[[load.workload]]\nname = \"a\"\nslo = {{ ttft = 0 }}\n{output}"), "slo ttft"),
        ("[load]\nworkload = 3\n".to_owned(), "must be tables"),
        ("[load]\nworkload = [3]\n".to_owned(), "every item must be a table"),
        (format!("[load]\nmix = {empty:?}\n"), "no workloads"),
        ("[load]\nmix = \"nothing\"\n".to_owned(), "built-in mixes"),
        (format!("[load]\ntrace = {trace:?}\n"), "holds no request"),
        ("[load]\ntrace = \"/nowhere\"\n".to_owned(), "/nowhere"),
    ] {
        let problems = read(&text).unwrap_err();
        assert!(problems.len() == 1 && problems[0].contains(what), "{text}: {problems:?}");
    }
}

#[test]
fn a_context_that_nothing_fits_is_an_error_and_what_does_not_fit_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let long = "word ".repeat(2000);
    let text = format!("{{\"prompt\":\"short\"}}\n{{\"prompt\":\"{long}\"}}\n");
    let both = file(folder.path(), "both.jsonl", &text);
    let mix = |data: &str| {
        let output = "output = { dist = \"fixed\", tokens = 5 }\n";
        read(&format!("[load]\nrate = 5\n[[load.workload]]\nname = \"a\"\ndataset = {data:?}\n{output}"))
            .unwrap()
    };
    let recipe = Recipe::read(&mix(&both)).unwrap();
    let load = recipe.load(&target(1024), 1, 1).unwrap();
    assert_eq!(load.schedule.left_out, 1);
    assert!(load.schedule.requests.iter().all(|r| r.input == 1));
    assert_eq!(recipe.load(&target(8192), 1, 1).unwrap().schedule.left_out, 0);
    let only = file(folder.path(), "long.jsonl", &format!("{{\"prompt\":\"{long}\"}}\n"));
    let error = Recipe::read(&mix(&only)).unwrap().load(&target(1024), 1, 1).unwrap_err();
    assert!(error.contains("too long for the server"), "{error}");
    let error = Recipe::read(&LoadPlan::default()).unwrap().load(&target(60), 1, 1).unwrap_err();
    assert!(error.contains("smaller than the smallest request"), "{error}");
}

#[test]
fn a_trace_is_replayed_up_to_the_duration() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<String> = (0..10)
        .map(|n| {
            format!(
                "{{\"timestamp\":{},\"prompt\":\"p\",\"max_tokens\":4,\"workload_type\":\"chat\"}}",
                5 + n
            )
        })
        .collect();
    let trace = file(folder.path(), "trace.json", &format!("{{\"prompts\":[{}]}}", rows.join(",")));
    let load = load(&format!("[load]\ntrace = {trace:?}\nduration = \"4s\"\n"));
    let at: Vec<u64> = load.schedule.requests.iter().map(|r| r.at.as_secs()).collect();
    assert_eq!(at, [0, 1, 2, 3]);
}

#[test]
fn a_journal_of_an_older_version_gives_the_load_it_had() {
    let old = r#"{"duration":60.0,"rate":3.0,"seed":7,"drain":10.0,"request_timeout":30.0,"max_failure_share":0.2,"warmup_requests":2}"#;
    let plan: LoadPlan = serde_json::from_str(old).unwrap();
    assert_eq!((plan.rate, plan.seed, plan.mix.as_str()), (3.0, 7, "mixed"));
    assert_eq!(compose::check(&plan), []);
}
