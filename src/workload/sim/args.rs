//! vLLM's command line as far as the simulator needs it. Every argument is accepted, known or not, so that the argv that
//! starts the real server starts this one. Pure.

use serde::{Deserialize, Serialize};

/// The arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Args {
    /// `--model`.
    pub(super) model: String,
    /// The first `--served-model-name`, or the model.
    pub(super) served_name: String,
    /// `--host`; absent means every address.
    pub(super) host: Option<String>,
    /// `--port`.
    pub(super) port: u16,
    /// `--max-model-len`.
    pub(super) max_model_len: u64,
    /// `--tensor-parallel-size`.
    pub(super) tensor_parallel: u32,
    /// `--max-num-seqs`.
    pub(super) max_num_seqs: usize,
    /// `--max-num-batched-tokens`.
    pub(super) max_num_batched_tokens: u64,
    /// `--disable-log-stats`.
    pub(super) log_stats: bool,
    /// `--disable-uvicorn-access-log`.
    pub(super) access_log: bool,
    /// What the line "non-default args" shows, as Python prints a dict.
    pub(super) shown: String,
}

const SHORT: [(&str, &str); 5] = [
    ("-tp", "tensor-parallel-size"),
    ("-pp", "pipeline-parallel-size"),
    ("-dp", "data-parallel-size"),
    ("-q", "quantization"),
    ("-O", "optimization-level"),
];

impl Args {
    /// Reads what stands after `__sim`; the error is a lowercase fragment.
    pub(super) fn parse(arguments: &[String]) -> Result<Self, String> {
        let pairs = pairs(arguments)?;
        let get = |name: &str| {
            pairs.iter().rev().find(|(key, _)| key == name).and_then(|(_, value)| value.as_deref())
        };
        let has = |name: &str| pairs.iter().any(|(key, _)| key == name);
        let model = get("model").unwrap_or("facebook/opt-125m").to_owned();
        let served = get("served-model-name").and_then(|names| names.split(' ').next()).map(str::to_owned);
        Ok(Self {
            served_name: served.unwrap_or_else(|| model.clone()),
            model,
            host: get("host").map(str::to_owned),
            port: number(get("port"), "port", 8000)?,
            max_model_len: length(get("max-model-len"))?,
            tensor_parallel: number::<u32>(get("tensor-parallel-size"), "tensor-parallel-size", 1)?.max(1),
            max_num_seqs: number(get("max-num-seqs"), "max-num-seqs", 256)?,
            max_num_batched_tokens: number(get("max-num-batched-tokens"), "max-num-batched-tokens", 2048)?,
            log_stats: !has("disable-log-stats"),
            access_log: !has("disable-uvicorn-access-log"),
            shown: shown(&pairs),
        })
    }
}

type Pair = (String, Option<String>);

fn pairs(arguments: &[String]) -> Result<Vec<Pair>, String> {
    let mut pairs: Vec<Pair> = Vec::new();
    let mut rest = arguments.iter().peekable();
    if rest.peek().is_some_and(|first| *first == "serve") {
        rest.next();
    }
    while let Some(argument) = rest.next() {
        let Some(name) = long_name(argument) else {
            // A bare word is the model of `vllm serve MODEL`, or a further value of the option before it.
            match pairs.last_mut() {
                Some((_, Some(values))) => {
                    values.push(' ');
                    values.push_str(argument);
                }
                _ => pairs.push(("model".to_owned(), Some(argument.clone()))),
            }
            continue;
        };
        let (name, attached) = match name.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (name, None),
        };
        let value = attached.or_else(|| rest.next_if(|next| !is_option(next)).cloned());
        if name.is_empty() {
            return Err(format!("unrecognized arguments: {argument}"));
        }
        pairs.push((name.replace('_', "-"), value));
    }
    Ok(pairs)
}

fn is_option(text: &str) -> bool {
    text.strip_prefix('-').is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn long_name(argument: &str) -> Option<String> {
    if let Some(name) = argument.strip_prefix("--") {
        return Some(name.to_owned());
    }
    if !is_option(argument) {
        return None;
    }
    let (short, value) =
        argument.split_once('=').map_or((argument, None), |(short, value)| (short, Some(value)));
    let name = SHORT
        .iter()
        .find(|(known, _)| *known == short)
        .map_or(short.trim_start_matches('-'), |(_, name)| name);
    Some(value.map_or_else(|| name.to_owned(), |value| format!("{name}={value}")))
}

fn number<T: std::str::FromStr>(value: Option<&str>, name: &str, default: T) -> Result<T, String> {
    match value {
        Some(value) => value.parse().map_err(|_| format!("argument --{name}: invalid int value: '{value}'")),
        None => Ok(default),
    }
}

/// vLLM reads `1k` as 1000 and `1K` as 1024.
fn length(value: Option<&str>) -> Result<u64, String> {
    let Some(text) = value else { return Ok(4096) };
    let (digits, scale) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 1000),
        Some(b'K') => (&text[..text.len() - 1], 1024),
        _ => (text, 1),
    };
    number::<u64>(Some(digits), "max-model-len", 0).map(|value| value * scale)
}

/// The dict of the log line. vLLM leaves out what equals the default; we do not know all defaults and show all.
fn shown(pairs: &[Pair]) -> String {
    let fields: Vec<String> = pairs
        .iter()
        .map(|(name, value)| {
            let key = name.replace('-', "_");
            let value = match value.as_deref() {
                None => "True".to_owned(),
                Some(value) if key == "served_model_name" => {
                    let names: Vec<String> = value.split(' ').map(|name| format!("'{name}'")).collect();
                    format!("[{}]", names.join(", "))
                }
                Some(value) if value.parse::<f64>().is_ok() => value.to_owned(),
                Some(value) => format!("'{value}'"),
            };
            format!("'{key}': {value}")
        })
        .collect();
    format!("{{{}}}", fields.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Args {
        Args::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_servers_usual_command_line_is_understood() {
        let args = parse(
            "--model /m/tiny --served-model-name tiny other --port=8123 -tp 2 --max-model-len 1K --enforce-eager",
        );
        assert_eq!(args.model, "/m/tiny");
        assert_eq!(args.served_name, "tiny");
        assert_eq!((args.port, args.tensor_parallel, args.max_model_len), (8123, 2, 1024));
        assert_eq!(
            args.shown,
            "{'model': '/m/tiny', 'served_model_name': ['tiny', 'other'], 'port': 8123, 'tensor_parallel_size': 2, \
             'max_model_len': '1K', 'enforce_eager': True}"
        );
    }

    #[test]
    fn unknown_arguments_are_accepted_and_shown() {
        let args = parse(
            "serve m --worker-cls a.B --seed -1 --no-such-flag --profiler-config.torch_profiler_dir=/x -tp=4",
        );
        assert_eq!(args.model, "m");
        assert_eq!(args.tensor_parallel, 4);
        assert!(args.shown.contains("'worker_cls': 'a.B'"), "{}", args.shown);
        assert!(args.shown.contains("'seed': -1, 'no_such_flag': True"), "{}", args.shown);
    }

    #[test]
    fn a_port_that_is_no_number_is_refused() {
        let error = Args::parse(&["--port".to_owned(), "x".to_owned()]).unwrap_err();
        assert_eq!(error, "argument --port: invalid int value: 'x'");
    }
}
