//! The server's own word on how it is: `/metrics` and `/health`. The parser takes text and is pure.
//!
//! `/health` is wrong both ways: a hung engine answers 200 for ever, a saturated one may not answer in time. Only the
//! counters of `/metrics` tell progress, and those stand still in a long prefill or a compile as well.

use crate::event::{EngineSample, Reading};
use reqwest::{Client, StatusCode};
use std::time::Duration;

/// A page of a healthy server has some 60 KiB; what is longer than this is not one.
pub const MAX_BODY: usize = 8 << 20;

/// A loaded server may take seconds to answer; the next sample waits meanwhile.
pub const SCRAPE_TIMEOUT: Duration = Duration::from_secs(5);

/// How the values of several engines (data parallel) become one.
#[derive(Clone, Copy)]
enum Fold {
    Sum,
    Max,
}

/// The series of interest. vLLM called the last one differently until 0.9.
const SERIES: [(&str, usize, Fold); 7] = [
    ("vllm:iteration_tokens_total_count", 0, Fold::Sum),
    ("vllm:prompt_tokens_total", 1, Fold::Sum),
    ("vllm:generation_tokens_total", 2, Fold::Sum),
    ("vllm:num_requests_running", 3, Fold::Sum),
    ("vllm:num_requests_waiting", 4, Fold::Sum),
    ("vllm:kv_cache_usage_perc", 5, Fold::Max),
    ("vllm:gpu_cache_usage_perc", 5, Fold::Max),
];

/// Reads the text format of Prometheus and adds the engines up; `kv_usage` is that of the fullest one. A page without
/// one of the series, or with a value that is no number, is unavailable and says which.
pub fn parse(text: &str) -> Reading<EngineSample> {
    let mut sums: [Option<f64>; 6] = [None; 6];
    for line in text.lines() {
        let line = line.trim_start();
        // Everything we want begins like this, and most lines do not.
        if !line.starts_with("vllm:") {
            continue;
        }
        let Some((name, value)) = series(line) else { continue };
        let Some((_, slot, fold)) = SERIES.iter().find(|(wanted, _, _)| *wanted == name) else { continue };
        let Some(value) = value.parse::<f64>().ok().filter(|value| value.is_finite()) else {
            return unavailable(format!("{name} is {value:?} and not a number"));
        };
        let sum = &mut sums[*slot];
        *sum = Some(match (*sum, fold) {
            (None, _) => value,
            (Some(before), Fold::Sum) => before + value,
            (Some(before), Fold::Max) => before.max(value),
        });
    }
    if sums.iter().all(Option::is_none) {
        let what = if text.trim_start().starts_with('<') { "HTML" } else { "text" };
        return unavailable(format!(
            "the page is {what} without any vllm: series; is the server vLLM, without --disable-log-stats?"
        ));
    }
    if let Some(missing) = sums.iter().position(Option::is_none) {
        let name = SERIES.iter().find(|(_, slot, _)| *slot == missing).map_or("", |(name, _, _)| name);
        return unavailable(format!("the page has no {name}"));
    }
    if sums.iter().flatten().any(|sum| !sum.is_finite()) {
        return unavailable("the engines' counters add up to more than a number holds".to_owned());
    }
    let value = |slot: usize| sums[slot].unwrap_or_default();
    Reading::Value(EngineSample {
        iterations: value(0),
        prompt_tokens: value(1),
        generation_tokens: value(2),
        running: value(3),
        waiting: value(4),
        kv_usage: value(5),
    })
}

fn unavailable<T>(why: String) -> Reading<T> {
    Reading::Unavailable { why }
}

/// Name and value of one line: `name value [time]` or `name{label="text",...} value [time]`. A label's text may hold
/// blanks, braces and escaped quotes.
fn series(line: &str) -> Option<(&str, &str)> {
    let end = line.find(['{', ' ', '\t'])?;
    let (name, mut rest) = line.split_at(end);
    if rest.starts_with('{') {
        rest = &rest[label_end(rest)? + 1..];
    }
    Some((name, rest.split_ascii_whitespace().next()?))
}

/// The position of the brace that closes the labels.
fn label_end(labels: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in labels.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// A client for the server under test: no proxy, no redirect, few connections.
pub fn client() -> reqwest::Result<Client> {
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(SCRAPE_TIMEOUT)
        .pool_max_idle_per_host(1)
        .build()
}

/// Reads `/metrics` below `base_url` (`http://127.0.0.1:8000`). Never longer than [`SCRAPE_TIMEOUT`], never more than
/// [`MAX_BODY`].
pub async fn scrape(client: &Client, base_url: &str) -> Reading<EngineSample> {
    let url = format!("{base_url}/metrics");
    match tokio::time::timeout(SCRAPE_TIMEOUT, page(client, &url)).await {
        Ok(Ok(text)) => parse(&text),
        Ok(Err(why)) => unavailable(why),
        Err(_) => unavailable(format!("GET {url}: no answer within {} s", SCRAPE_TIMEOUT.as_secs())),
    }
}

async fn page(client: &Client, url: &str) -> Result<String, String> {
    let mut response =
        client.get(url).send().await.map_err(|error| format!("GET {url}: {}", explain(&error)))?;
    if response.status() != StatusCode::OK {
        return Err(format!("GET {url}: HTTP status {}", response.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| format!("GET {url}: {}", explain(&error)))?
    {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(format!("GET {url}: more than {} MiB, which is no metrics page", MAX_BODY >> 20));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8(body).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// The innermost cause: reqwest's own message only repeats the address.
fn explain(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// What `/health` answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// 200. It only means that no error is known to the server.
    Ok,
    /// Another status; vLLM says 503 when its engine is dead.
    Status(u16),
    /// Nobody listens. While vLLM loads it holds the port without listening.
    Refused,
    /// It listens but does not answer in time: saturated, hung, or blocked in an export.
    TimedOut,
    /// Something else, in words.
    Failed(String),
}

/// Asks `/health` below `base_url`.
pub async fn health(client: &Client, base_url: &str, timeout: Duration) -> Health {
    match client.get(format!("{base_url}/health")).timeout(timeout).send().await {
        Ok(response) if response.status() == StatusCode::OK => Health::Ok,
        Ok(response) => Health::Status(response.status().as_u16()),
        Err(error) if error.is_timeout() => Health::TimedOut,
        Err(error) if is_refused(&error) => Health::Refused,
        Err(error) => Health::Failed(explain(&error)),
    }
}

fn is_refused(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        cause = inner.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page_of(engines: &[(f64, f64)]) -> String {
        let mut text = String::from("# HELP vllm:num_requests_running Number of requests.\n");
        for (engine, (count, gauge)) in engines.iter().enumerate() {
            let labels = format!("engine=\"{engine}\",model_name=\"a \\\"quoted\\\" {{name}}\\\\\"");
            for (name, _, fold) in &SERIES[..6] {
                let value = if name.contains("num_") || matches!(fold, Fold::Max) { gauge } else { count };
                text.push_str(&format!("{name}{{{labels}}} {value}\n"));
            }
            text.push_str(&format!("vllm:iteration_tokens_total_bucket{{le=\"+Inf\",{labels}}} 99\n"));
            text.push_str(&format!("vllm:prompt_tokens_created{{{labels}}} 1.7e+09\n"));
        }
        text
    }

    fn why(reading: Reading<EngineSample>) -> String {
        match reading {
            Reading::Unavailable { why } => why,
            other => panic!("expected no value: {other:?}"),
        }
    }

    #[test]
    fn engines_are_added_up_and_the_fullest_cache_counts() {
        let Reading::Value(sample) = parse(&page_of(&[(10.0, 0.25), (5.0, 0.75)])) else {
            panic!("no value")
        };
        assert_eq!((sample.iterations, sample.prompt_tokens, sample.generation_tokens), (15.0, 15.0, 15.0));
        assert_eq!((sample.running, sample.waiting, sample.kv_usage), (1.0, 1.0, 0.75));
    }

    #[test]
    fn a_line_without_labels_and_one_with_a_time_are_read() {
        let text = page_of(&[(1.0, 1.0)])
            .replace("vllm:prompt_tokens_total{", "vllm:prompt_tokens_total 7 17000\n#{");
        let Reading::Value(sample) = parse(&text) else { panic!("no value") };
        assert_eq!(sample.prompt_tokens, 7.0);
    }

    #[test]
    fn html_is_named_as_such() {
        assert!(why(parse("\n<!doctype html><p>Bad gateway vllm:")).contains("HTML"));
    }

    #[test]
    fn a_missing_series_is_named() {
        let text = page_of(&[(1.0, 1.0)]).replace("vllm:num_requests_waiting", "vllm:something_else");
        assert_eq!(why(parse(&text)), "the page has no vllm:num_requests_waiting");
    }

    #[test]
    fn a_value_that_is_no_number_is_named_and_never_becomes_zero() {
        for value in ["NaN", "+Inf", "-Inf", "many"] {
            let text = page_of(&[]) + &format!("vllm:generation_tokens_total{{a=\"b\"}} {value}\n");
            assert!(why(parse(&text)).contains("vllm:generation_tokens_total"), "{value}");
        }
    }

    /// JSON has no word for infinity, and the journal line could not be read again.
    #[test]
    fn a_sum_that_no_number_holds_is_named() {
        assert!(why(parse(&page_of(&[(1e308, 1.0), (1e308, 1.0)]))).contains("add up"));
    }

    #[test]
    fn a_page_cut_inside_its_labels_is_unavailable() {
        let text = page_of(&[(1.0, 1.0)]);
        assert!(why(parse(&text[..text.len() / 2])).contains("has no vllm:"));
    }

    proptest! {
        #[test]
        fn no_page_makes_the_parser_panic(text in ".{0,200}", cut in 0usize..2000) {
            let page = page_of(&[(1.0, 2.0)]);
            let mut cut = cut.min(page.len());
            while !page.is_char_boundary(cut) { cut -= 1; }
            parse(&text);
            parse(&format!("{}{text}\n{}", &page[..cut], &page[cut..]));
        }
    }
}
