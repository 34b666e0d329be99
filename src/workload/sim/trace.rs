//! A profiler window as text in the layout that Kineto writes with torch 2.9: events by kind and not by time, process and
//! thread names at the end, "Record Window End" last. Pure.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fmt::Write;
use std::ops::Range;

/// What a window recorded.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Recording {
    /// Of the worker.
    pub(super) pid: u32,
    /// Of the worker; also its device.
    pub(super) rank: u32,
    /// Unix nanoseconds at the start.
    pub(super) start_ns: i128,
    /// Length in seconds.
    pub(super) seconds: f64,
    /// How many events to write, beside one for each step.
    pub(super) events: u64,
    /// The steps that were recorded, by their numbers.
    pub(super) steps: Range<u64>,
    /// Of names and durations.
    pub(super) seed: u64,
    /// The file's own name.
    pub(super) name: String,
}

const OPS: [(&str, &str); 8] = [
    ("aten::linear", "sim_gemm_bf16_128x128_tn"),
    ("aten::mm", "sim_gemm_bf16_64x256_nn"),
    ("aten::add_", "void sim::elementwise_kernel<4, add>(int, float*)"),
    ("aten::mul", "void sim::elementwise_kernel<4, mul>(int, float*)"),
    ("sim::attention", "sim_flash_fwd_kernel<128, 128, true>"),
    ("sim::rms_norm", "void sim::rms_norm_kernel<8>(__nv_bfloat16*)"),
    ("sim::silu_and_mul", "void sim::act_and_mul_kernel<silu>(__nv_bfloat16*)"),
    ("sim::rotary_embedding", "void sim::rotary_kernel<true>(long const*)"),
];

impl Recording {
    /// The whole file.
    pub(super) fn text(&self) -> String {
        // Kineto's timestamps are microseconds after a base that changes every few months, to keep their digits.
        let quarter: i128 = 7_776_000_000_000_000;
        let base = self.start_ns.div_euclid(quarter) * quarter;
        let start = (self.start_ns - base) as f64 / 1000.0;
        let span = (self.seconds * 1e6).max(1.0);
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut out = String::with_capacity(300 * usize::try_from(self.events).unwrap_or(0) + 4096);
        let (pid, device) = (self.pid, self.rank);
        let _ = write!(
            out,
            "\n  {{\n    \"schemaVersion\": 1,\n    \"deviceProperties\": [\n    {{\n      \"id\": {device}, \
            \"name\": \"Simulated GPU\", \"totalGlobalMem\": 85899345920,\n      \"computeMajor\": 9, \"computeMinor\": 0,\n      \
            \"warpSize\": 32, \"numSms\": 132\n    }}\n    ],\n      \"trace_id\": \"{:032X}\",\n      \
            \"cuda_runtime_version\": 12080,\n  \"displayTimeUnit\": \"ms\",\n  \"baseTimeNanoseconds\": {base},\n  \
            \"traceEvents\": [\n",
            rng.random::<u128>()
        );
        // Half of the events are operators, a sixth each launches, kernels and the arrows between the two.
        let launches = self.events / 6;
        let ops = self.events - 3 * launches;
        let at = |index: u64, of: u64| start + span * index as f64 / of.max(1) as f64;
        let width = span / self.events.max(1) as f64;
        for index in 0..ops {
            let (name, _) = OPS[rng.random_range(0..OPS.len())];
            let _ = write!(
                out,
                "  {{\n    \"ph\": \"X\", \"cat\": \"cpu_op\", \"name\": \"{name}\", \"pid\": {pid}, \"tid\": {pid},\n    \
                \"ts\": {:.3}, \"dur\": {:.3},\n    \"args\": {{\n      \"External id\": {},\"Record function id\": 0, \
                \"Ev Idx\": {index}\n    }}\n  }},\n",
                at(index, ops),
                width * rng.random_range(0.2..0.9),
                index + 1
            );
        }
        let steps = self.steps.end.saturating_sub(self.steps.start);
        for (index, step) in self.steps.clone().enumerate() {
            let _ = write!(
                out,
                "  {{\n    \"ph\": \"X\", \"cat\": \"user_annotation\", \"name\": \"ProfilerStep#{step}\", \"pid\": {pid}, \
                \"tid\": {pid},\n    \"ts\": {:.3}, \"dur\": {:.3},\n    \"args\": {{\n      \"External id\": {}\n    }}\n  }},\n",
                at(index as u64, steps),
                span / steps.max(1) as f64,
                self.events + step
            );
        }
        for index in 0..launches {
            let (_, kernel) = OPS[rng.random_range(0..OPS.len())];
            let (ts, correlation) = (at(index, launches), 1000 + index);
            let _ = write!(
                out,
                "  {{\n    \"ph\": \"X\", \"cat\": \"cuda_runtime\", \"name\": \"cudaLaunchKernel\", \"pid\": {pid}, \
                \"tid\": {pid},\n    \"ts\": {ts:.3}, \"dur\": {:.3},\n    \"args\": {{\n      \"External id\": {},      \
                \"cbid\": 211, \"correlation\": {correlation}\n    }}\n  }},\n",
                width * 0.3,
                index + 1
            );
            let _ = write!(
                out,
                "  {{\n    \"ph\": \"X\", \"cat\": \"kernel\", \"name\": \"{kernel}\", \"pid\": {device}, \"tid\": 7,\n    \
                \"ts\": {:.3}, \"dur\": {:.3},\n    \"args\": {{\n      \"External id\": {},      \"queued\": 0, \
                \"device\": {device}, \"context\": 1,      \"stream\": 7, \"correlation\": {correlation},      \
                \"grid\": [132, 1, 1],      \"block\": [128, 1, 1]\n    }}\n  }},\n",
                ts + width,
                width * rng.random_range(0.5..2.5),
                index + 1
            );
            let _ = write!(
                out,
                "  {{\n    \"ph\": \"f\", \"id\": {correlation}, \"pid\": {device}, \"tid\": 7, \"ts\": {:.3},\n    \
                \"cat\": \"ac2g\", \"name\": \"ac2g\", \"bp\": \"e\"\n  }},\n",
                ts + width
            );
        }
        self.names(&mut out, start, span);
        let _ = write!(out, "  \"traceName\": \"{}\"\n}}", self.name);
        out
    }

    fn names(&self, out: &mut String, start: f64, span: f64) {
        let (pid, device) = (self.pid, self.rank);
        let mut meta = |name: &str, pid: u32, tid: u32, args: &str| {
            let _ = write!(
                out,
                "  {{\n    \"name\": \"{name}\", \"ph\": \"M\", \"ts\": {start:.3}, \"pid\": {pid}, \"tid\": {tid},\n    \
                \"args\": {{\n      {args}\n    }}\n  }},\n"
            );
        };
        meta("process_name", pid, 0, "\"name\": \"VLLM::EngineCore\"");
        meta("process_labels", pid, 0, "\"labels\": \"CPU\"");
        meta("process_sort_index", pid, 0, &format!("\"sort_index\": {pid}"));
        meta("process_name", device, 0, "\"name\": \"VLLM::EngineCore\"");
        meta("process_labels", device, 0, &format!("\"labels\": \"GPU {device}\""));
        meta("process_sort_index", device, 0, &format!("\"sort_index\": {}", 5_000_000 + device));
        meta("thread_name", device, 7, "\"name\": \"stream 7 \"");
        meta("thread_sort_index", device, 7, "\"sort_index\": 7");
        meta("thread_name", pid, pid, &format!("\"name\": \"thread {pid} (VLLM::EngineCor)\""));
        meta("thread_sort_index", pid, pid, &format!("\"sort_index\": {pid}"));
        let _ = write!(
            out,
            "  {{\n    \"ph\": \"X\", \"cat\": \"Trace\", \"ts\": {start:.3}, \"dur\": {span:.3},\n    \
            \"pid\": \"Spans\", \"tid\": \"PyTorch Profiler\",\n    \"name\": \"PyTorch Profiler (0)\",\n    \"args\": {{\n      \
            \"Op count\": 0\n    }}\n  }},\n  {{\n    \"name\": \"process_sort_index\", \"ph\": \"M\", \"ts\": {start:.3},\n    \
            \"pid\": \"Spans\", \"tid\": 0,\n    \"args\": {{\n      \"sort_index\": 536870912\n    }}\n  }},\n  {{\n    \
            \"name\": \"Iteration Start: PyTorch Profiler\", \"ph\": \"i\", \"s\": \"g\",\n    \"pid\": \"Traces\", \
            \"tid\": \"Trace PyTorch Profiler\", \"ts\": {start:.3}\n  }},\n  {{\n    \"name\": \"Record Window End\", \
            \"ph\": \"i\", \"s\": \"g\",\n    \"pid\": \"\", \"tid\": \"\", \"ts\": {:.3}\n  }}\n  ],\n",
            start + span
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording() -> Recording {
        Recording {
            pid: 4242,
            rank: 0,
            start_ns: 1_795_500_000_000_000_000,
            seconds: 0.5,
            events: 600,
            steps: 40..60,
            seed: 3,
            name: "window-0000-rank0.pt.trace.json".to_owned(),
        }
    }

    #[test]
    fn the_trace_is_json_with_the_events_asked_for() {
        let parsed: serde_json::Value = serde_json::from_str(&recording().text()).unwrap();
        let events = parsed["traceEvents"].as_array().unwrap();
        let of = |cat: &str| events.iter().filter(|event| event["cat"] == cat).count();
        assert_eq!((of("cpu_op"), of("cuda_runtime"), of("kernel"), of("ac2g")), (300, 100, 100, 100));
        assert_eq!(of("user_annotation"), 20);
        assert_eq!(events.last().unwrap()["name"], "Record Window End");
        assert_eq!(parsed["traceName"], "window-0000-rank0.pt.trace.json");
    }

    #[test]
    fn events_are_separated_as_kineto_separates_them() {
        let text = recording().text();
        assert!(text.starts_with("\n  {\n    \"schemaVersion\": 1,\n"));
        // 600 events, 20 steps, 10 names, 3 trailing marks and the span: the salvager finds event borders by this anchor.
        assert_eq!(text.matches("\n  },\n  {\n").count(), 600 + 20 + 10 + 4 - 1);
        assert!(text.ends_with("\n  }\n  ],\n  \"traceName\": \"window-0000-rank0.pt.trace.json\"\n}"));
    }

    #[test]
    fn the_same_seed_gives_the_same_text() {
        assert_eq!(recording().text(), recording().text());
        assert_ne!(recording().text(), Recording { seed: 4, ..recording() }.text());
    }
}
