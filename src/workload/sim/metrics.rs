//! `/metrics` as Prometheus' Python client prints it for vLLM 0.15.1: names, labels, order and number format were recorded
//! from a real server. Pure.

use super::wire::{Finish, StepReport};
use std::collections::BTreeMap;
use std::fmt::Write;

const ITERATION: &[f64] = &[1., 8., 16., 32., 64., 128., 256., 512., 1024., 2048., 4096., 8192., 16384.];
const COUNT: &[f64] = &[1., 2., 5., 10., 20.];
const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1., 2.5, 5., 7.5, 10., 20., 40., 80.,
    160., 640., 2560.,
];
const PER_TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1., 2.5, 5., 7.5, 10., 20., 40., 80.];
const LATENCY: &[f64] = &[
    0.3, 0.5, 0.8, 1., 1.5, 2., 2.5, 5., 10., 15., 20., 30., 40., 50., 60., 120., 240., 480., 960., 1920.,
    7680.,
];

#[derive(Debug, Clone)]
struct Histogram {
    name: &'static str,
    help: &'static str,
    bounds: Vec<f64>,
    counts: Vec<u64>,
    sum: f64,
    count: u64,
}

impl Histogram {
    fn new(name: &'static str, help: &'static str, bounds: &[f64]) -> Self {
        Self { name, help, bounds: bounds.to_vec(), counts: vec![0; bounds.len()], sum: 0.0, count: 0 }
    }

    fn observe(&mut self, value: f64) {
        for (bound, count) in self.bounds.iter().zip(&mut self.counts) {
            *count += u64::from(value <= *bound);
        }
        self.sum += value;
        self.count += 1;
    }
}

/// What is known of a request when it ends.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Ended {
    /// Prompt tokens.
    pub(super) prompt: u64,
    /// Output tokens.
    pub(super) generated: u64,
    /// `max_tokens`.
    pub(super) max_tokens: u64,
    /// Seconds from arrival to the end.
    pub(super) latency: f64,
    /// Seconds in the queue.
    pub(super) queued: f64,
    /// Seconds from the end of the queue to the first token.
    pub(super) prefill: f64,
    /// Seconds from the first to the last token.
    pub(super) decode: f64,
}

/// All metrics.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    model: String,
    cache_info: String,
    created: f64,
    /// Gauges, as of the last step.
    pub(super) running: u64,
    /// The same.
    pub(super) waiting: u64,
    /// The same.
    pub(super) kv_usage: f64,
    /// Since the start.
    pub(super) prompt_tokens: u64,
    /// The same.
    pub(super) generation_tokens: u64,
    preemptions: u64,
    finished: [u64; 4],
    histograms: Vec<Histogram>,
    http: BTreeMap<(String, String, String), u64>,
}

/// Places in [`Metrics::histograms`], in the order of the page.
#[derive(Clone, Copy)]
enum H {
    PromptTokens,
    GenerationTokens,
    Iteration,
    MaxGenerationTokens,
    N,
    MaxTokens,
    Ttft,
    Itl,
    Tpot,
    E2e,
    Queue,
    Inference,
    Prefill,
    Decode,
    PrefillComputed,
}

fn one_two_five(max: u64) -> Vec<f64> {
    let mut bounds = Vec::new();
    let mut scale = 1;
    loop {
        for mantissa in [1, 2, 5] {
            if mantissa * scale > max {
                return bounds;
            }
            bounds.push((mantissa * scale) as f64);
        }
        scale *= 10;
    }
}

impl Metrics {
    /// `created` in Unix seconds.
    pub(super) fn new(model: &str, max_model_len: u64, blocks: u64, block_size: u64, created: f64) -> Self {
        let tokens = one_two_five(max_model_len);
        let histograms = vec![
            Histogram::new("request_prompt_tokens", "Number of prefill tokens processed.", &tokens),
            Histogram::new("request_generation_tokens", "Number of generation tokens processed.", &tokens),
            Histogram::new(
                "iteration_tokens_total",
                "Histogram of number of tokens per engine_step.",
                ITERATION,
            ),
            Histogram::new(
                "request_max_num_generation_tokens",
                "Histogram of maximum number of requested generation tokens.",
                &tokens,
            ),
            Histogram::new("request_params_n", "Histogram of the n request parameter.", COUNT),
            Histogram::new(
                "request_params_max_tokens",
                "Histogram of the max_tokens request parameter.",
                &tokens,
            ),
            Histogram::new(
                "time_to_first_token_seconds",
                "Histogram of time to first token in seconds.",
                TTFT,
            ),
            Histogram::new(
                "inter_token_latency_seconds",
                "Histogram of inter-token latency in seconds.",
                PER_TOKEN,
            ),
            Histogram::new(
                "request_time_per_output_token_seconds",
                "Histogram of time_per_output_token_seconds per request.",
                PER_TOKEN,
            ),
            Histogram::new(
                "e2e_request_latency_seconds",
                "Histogram of e2e request latency in seconds.",
                LATENCY,
            ),
            Histogram::new(
                "request_queue_time_seconds",
                "Histogram of time spent in WAITING phase for request.",
                LATENCY,
            ),
            Histogram::new(
                "request_inference_time_seconds",
                "Histogram of time spent in RUNNING phase for request.",
                LATENCY,
            ),
            Histogram::new(
                "request_prefill_time_seconds",
                "Histogram of time spent in PREFILL phase for request.",
                LATENCY,
            ),
            Histogram::new(
                "request_decode_time_seconds",
                "Histogram of time spent in DECODE phase for request.",
                LATENCY,
            ),
            Histogram::new(
                "request_prefill_kv_computed_tokens",
                "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
                &tokens,
            ),
        ];
        Self {
            model: model.to_owned(),
            cache_info: format!(
                "block_size=\"{block_size}\",cache_dtype=\"auto\",enable_prefix_caching=\"False\",engine=\"0\",\
                 gpu_memory_utilization=\"0.9\",num_gpu_blocks=\"{blocks}\""
            ),
            created,
            running: 0,
            waiting: 0,
            kv_usage: 0.0,
            prompt_tokens: 0,
            generation_tokens: 0,
            preemptions: 0,
            finished: [0; 4],
            histograms,
            http: BTreeMap::new(),
        }
    }

    /// Every counter begins at 0 again, as after a restart that nobody saw.
    pub(super) fn reset(&mut self) {
        (self.prompt_tokens, self.generation_tokens, self.preemptions) = (0, 0, 0);
        self.finished = [0; 4];
        self.http.clear();
        for histogram in &mut self.histograms {
            histogram.counts.fill(0);
            (histogram.sum, histogram.count) = (0.0, 0);
        }
    }

    fn observe(&mut self, which: H, value: f64) {
        self.histograms[which as usize].observe(value);
    }

    /// A step of the engine. vLLM counts only steps with output; the gauges move with every report.
    pub(super) fn step(&mut self, report: &StepReport) {
        self.running = report.running;
        self.waiting = report.waiting;
        self.kv_usage = report.kv_usage;
        self.preemptions += report.preemptions;
        if report.outputs.is_empty() {
            return;
        }
        self.prompt_tokens += report.prompt_tokens;
        self.generation_tokens += report.generation_tokens;
        self.observe(H::Iteration, (report.prompt_tokens + report.generation_tokens) as f64);
    }

    /// A first token, so many seconds after the request arrived.
    pub(super) fn first_token(&mut self, seconds: f64) {
        self.observe(H::Ttft, seconds);
    }

    /// A later token, so many seconds after the one before.
    pub(super) fn next_token(&mut self, seconds: f64) {
        self.observe(H::Itl, seconds);
    }

    /// A request ended.
    pub(super) fn ended(&mut self, why: Finish, request: &Ended) {
        self.finished[match why {
            Finish::Stop => 0,
            Finish::Length => 1,
            Finish::Abort => 2,
        }] += 1;
        self.observe(H::PromptTokens, request.prompt as f64);
        self.observe(H::GenerationTokens, request.generated as f64);
        self.observe(H::MaxGenerationTokens, request.generated as f64);
        self.observe(H::N, 1.0);
        self.observe(H::MaxTokens, request.max_tokens as f64);
        self.observe(H::Tpot, request.decode / request.generated.saturating_sub(1).max(1) as f64);
        self.observe(H::E2e, request.latency);
        self.observe(H::Queue, request.queued);
        self.observe(H::Inference, request.prefill + request.decode);
        self.observe(H::Prefill, request.prefill);
        self.observe(H::Decode, request.decode);
        self.observe(H::PrefillComputed, request.prompt as f64);
    }

    /// An answered HTTP request; `status` is a class as `2xx`.
    pub(super) fn http(&mut self, handler: &str, method: &str, status: u16) {
        let key = (handler.to_owned(), method.to_owned(), format!("{}xx", status / 100));
        *self.http.entry(key).or_default() += 1;
    }

    /// The page.
    pub(super) fn text(&self) -> String {
        let mut page =
            Page { out: String::new(), labels: format!("engine=\"0\",model_name=\"{}\"", self.model) };
        page.gauge(
            "num_requests_running",
            "Number of requests in model execution batches.",
            self.running as f64,
        );
        page.gauge(
            "num_requests_waiting",
            "Number of requests waiting to be processed.",
            self.waiting as f64,
        );
        page.head(
            "engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; \
             weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
            "gauge",
        );
        for (state, value) in [("awake", 1.0), ("weights_offloaded", 0.0), ("discard_all", 0.0)] {
            page.value(
                "engine_sleep_state",
                &format!("{},sleep_state=\"{state}\"", page.labels.clone()),
                value,
            );
        }
        page.gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", self.kv_usage);
        let plain: [(&str, &str, u64); 9] = [
            ("prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.", 0),
            ("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", 0),
            (
                "external_prefix_cache_queries",
                "External prefix cache queries from KV connector cross-instance cache sharing, in terms of number of \
                 queried tokens.",
                0,
            ),
            (
                "external_prefix_cache_hits",
                "External prefix cache hits from KV connector cross-instance cache sharing, in terms of number of \
                 cached tokens.",
                0,
            ),
            ("mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items.", 0),
            ("mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items.", 0),
            ("num_preemptions", "Cumulative number of preemption from the engine.", self.preemptions),
            ("prompt_tokens", "Number of prefill tokens processed.", self.prompt_tokens),
            ("generation_tokens", "Number of generation tokens processed.", self.generation_tokens),
        ];
        let labels = page.labels.clone();
        for (name, help, value) in plain {
            page.counter(name, help, self.created, &[(labels.clone(), value)]);
        }
        let reasons: Vec<(String, u64)> = ["stop", "length", "abort", "error"]
            .iter()
            .zip(self.finished)
            .map(|(reason, value)| {
                (format!("engine=\"0\",finished_reason=\"{reason}\",model_name=\"{}\"", self.model), value)
            })
            .collect();
        page.counter("request_success", "Count of successfully processed requests.", self.created, &reasons);
        for histogram in &self.histograms {
            page.histogram(histogram, &self.model, self.created);
        }
        page.head("cache_config_info", "Information of the LLMEngine CacheConfig", "gauge");
        page.value("cache_config_info", &self.cache_info, 1.0);
        page.out
            .push_str("# HELP http_requests_total Total number of requests by method, status and handler.\n");
        page.out.push_str("# TYPE http_requests_total counter\n");
        for ((handler, method, status), count) in &self.http {
            let _ = writeln!(
                page.out,
                "http_requests_total{{handler=\"{handler}\",method=\"{method}\",status=\"{status}\"}} {}",
                number(*count as f64)
            );
        }
        page.out
    }
}

struct Page {
    out: String,
    labels: String,
}

impl Page {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.out, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.out, "vllm:{name}{{{labels}}} {}", number(value));
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help, "gauge");
        self.value(name, &self.labels.clone(), value);
    }

    fn counter(&mut self, name: &str, help: &str, created: f64, values: &[(String, u64)]) {
        self.head(&format!("{name}_total"), help, "counter");
        for (labels, value) in values {
            self.value(&format!("{name}_total"), labels, *value as f64);
        }
        self.head(&format!("{name}_created"), help, "gauge");
        for (labels, _) in values {
            self.value(&format!("{name}_created"), labels, created);
        }
    }

    fn histogram(&mut self, histogram: &Histogram, model: &str, created: f64) {
        let name = histogram.name;
        self.head(name, histogram.help, "histogram");
        let bounds = histogram.bounds.iter().map(|bound| number(*bound)).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(histogram.counts.iter().copied().chain([histogram.count])) {
            let labels = format!("engine=\"0\",le=\"{bound}\",model_name=\"{model}\"");
            self.value(&format!("{name}_bucket"), &labels, count as f64);
        }
        let labels = self.labels.clone();
        self.value(&format!("{name}_count"), &labels, histogram.count as f64);
        self.value(&format!("{name}_sum"), &labels, histogram.sum);
        self.head(&format!("{name}_created"), histogram.help, "gauge");
        self.value(&format!("{name}_created"), &labels, created);
    }
}

/// Numbers as the Python client prints them: `18.0`, `1.795500285213e+09`.
fn number(value: f64) -> String {
    let text = format!("{value:?}");
    match text.find('.') {
        Some(dot) if value > 0.0 && dot > 6 && !text.contains('e') => {
            let digits = format!("{}.{}{}", &text[..1], &text[1..dot], &text[dot + 1..]);
            format!("{}e+{:02}", digits.trim_end_matches(['0', '.']), dot - 1)
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_like_the_python_clients() {
        for (value, text) in [
            (18.0, "18.0"),
            (0.0, "0.0"),
            (16384.0, "16384.0"),
            (1795500285.2129, "1.7955002852129e+09"),
            (0.25, "0.25"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn only_a_step_with_output_counts_as_an_iteration() {
        let mut metrics = Metrics::new("tiny", 1024, 10, 16, 1.0);
        metrics.step(&StepReport { running: 1, ..StepReport::default() });
        assert!(
            metrics
                .text()
                .contains("vllm:iteration_tokens_total_count{engine=\"0\",model_name=\"tiny\"} 0.0")
        );
        assert!(metrics.text().contains("vllm:num_requests_running{engine=\"0\",model_name=\"tiny\"} 1.0"));
    }
}
