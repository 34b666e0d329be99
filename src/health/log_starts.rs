//! A whole log, read from its beginning as somebody else left it: it may hold several starts of a server, and what a line
//! means depends on whether that server was ready. Pure: it is given the log piece by piece and keeps only what counts.

use super::log_rules::{LogScanner, Rules, readable};
use crate::event::{Finding, Gravity, Phase};
use aho_corasick::AhoCorasick;
use memchr::memmem::FinderRev;
use memchr::{memchr, memrchr};

/// Rules of `rules.toml` that mark a place.
const STARTING: &str = "server-starting";
const STOPPING: &str = "graceful-shutdown";
/// Lines of a start that are kept; the first explain it.
const MAX_FINDINGS: usize = 2000;
/// The words that end a part, as the rules `server-starting`, `server-ready` and `graceful-shutdown` know them.
const MARKS: [&str; 4] = [
    "vLLM API server version ",
    "non-default args: ",
    "Application startup complete.",
    "Shutting down FastAPI HTTP server",
];
const READY: usize = 2;
const STOP: usize = 3;
/// Whether tokens come is said once in ten seconds.
const THROUGHPUT: &[u8] = b"Avg generation throughput: ";
const SERVED: &[u8] = b"200 OK";

/// One life of a server in a log.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Start {
    /// Number of its first line, from 1.
    pub line: u64,
    /// Number of its last line.
    pub last_line: u64,
    /// What the rules found.
    pub findings: Vec<Finding>,
}

/// Reads a log and cuts it into [`Start`]s.
#[derive(Debug)]
pub struct Starts<'a> {
    rules: &'a Rules,
    scanner: LogScanner,
    marks: AhoCorasick,
    throughput: FinderRev<'static>,
    served: FinderRev<'static>,
    /// A line whose end has not come yet.
    partial: Vec<u8>,
    /// Where the current line begins.
    offset: u64,
    phase: Option<Phase>,
    current: Start,
    done: Vec<Start>,
    /// The last line on throughput, if nothing moved although requests ran.
    still: Option<Finding>,
}

impl<'a> Starts<'a> {
    /// At the beginning of a log.
    pub fn new(rules: &'a Rules) -> Self {
        Self {
            rules,
            scanner: LogScanner::new(),
            // Fails only beyond 2^31 states.
            marks: AhoCorasick::new(MARKS).expect("four short texts fit"),
            throughput: FinderRev::new(THROUGHPUT),
            served: FinderRev::new(SERVED),
            partial: Vec::new(),
            offset: 0,
            phase: None,
            current: Start { line: 1, ..Start::default() },
            done: Vec::new(),
            still: None,
        }
    }

    /// Takes the next bytes.
    pub fn push(&mut self, mut bytes: &[u8]) {
        if !self.partial.is_empty() {
            let end = memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1);
            self.partial.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end..];
            if self.partial.last() != Some(&b'\n') && self.partial.len() < super::lines::MAX_LINE {
                return;
            }
            let line = std::mem::take(&mut self.partial);
            self.lines(&line);
        }
        let whole = memrchr(b'\n', bytes).map_or(0, |end| end + 1);
        self.lines(&bytes[..whole]);
        self.partial.extend_from_slice(&bytes[whole..]);
    }

    /// Lines up to this one, and bytes up to this place, are missing in the log.
    pub fn skip(&mut self, last: u64, to: u64) {
        let line = std::mem::take(&mut self.partial);
        self.lines(&line);
        self.scanner.end(self.rules, self.phase, &mut self.current.findings);
        self.scanner.skip(last, to);
        self.offset = self.offset.max(to);
    }

    /// The log is at its end. There is always at least one start, also of an empty log.
    pub fn finish(mut self) -> Vec<Start> {
        let line = std::mem::take(&mut self.partial);
        let unended = !line.is_empty();
        self.lines(&line);
        self.scanner.end(self.rules, self.phase, &mut self.current.findings);
        let last = self.scanner.lines() + u64::from(unended);
        self.close(last);
        self.done
    }

    /// Whole lines, cut where a mark changes what the following ones mean.
    fn lines(&mut self, mut text: &[u8]) {
        while !text.is_empty() {
            let Some(found) = self.marks.find(text) else { return self.part(text) };
            let (at, mark) = (found.start(), found.pattern().as_usize());
            let begin = memrchr(b'\n', &text[..at]).map_or(0, |before| before + 1);
            let end = memchr(b'\n', &text[at..]).map_or(text.len(), |after| at + after + 1);
            self.part(&text[..begin]);
            self.mark(mark, &text[begin..end]);
            text = &text[end..];
        }
    }

    fn mark(&mut self, mark: usize, line: &[u8]) {
        match mark {
            READY => {
                self.part(line);
                self.phase = Some(Phase::Measuring);
                self.scanner.tell_again();
            }
            STOP => {
                let failed = self.failed();
                self.part(line);
                if !failed {
                    self.phase = Some(Phase::Stopping);
                }
            }
            _ => {
                // The same start says it more than once; another has begun if the one before got anywhere.
                let got_somewhere = self.phase.is_some_and(|phase| phase != Phase::Loading) || self.failed();
                if got_somewhere {
                    self.close(self.scanner.lines());
                    self.current = Start { line: self.scanner.lines() + 1, ..Start::default() };
                    self.scanner.tell_again();
                }
                self.phase = Some(Phase::Loading);
                self.part(line);
            }
        }
    }

    fn failed(&self) -> bool {
        self.current.findings.iter().any(|finding| {
            finding.gravity == Gravity::Fatal
                || finding.rule == STOPPING
                || finding.cause == "startup-timeout"
        })
    }

    fn part(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        let before = self.scanner.lines();
        let mut findings = Vec::new();
        self.scanner.read(self.rules, self.phase, text, &mut findings);
        let room = MAX_FINDINGS.saturating_sub(self.current.findings.len());
        self.current.findings.extend(findings.into_iter().take(room));
        self.moves(text, before);
        self.offset += text.len() as u64;
    }

    /// Remembers whether the last thing said about throughput is that there is none.
    fn moves(&mut self, text: &[u8], before: u64) {
        let served = self.served.rfind(text);
        let Some(at) = self.throughput.rfind(text) else {
            if served.is_some() {
                self.still = None;
            }
            return;
        };
        let begin = memrchr(b'\n', &text[..at]).map_or(0, |before| before + 1);
        let end = memchr(b'\n', &text[at..]).map_or(text.len(), |after| at + after);
        let line = readable(&text[begin..end]);
        let number = before + 1 + memchr::memchr_iter(b'\n', &text[..begin]).count() as u64;
        let waits =
            self.rules.classify(&line, Phase::Measuring).filter(|(rule, _)| rule.id == "no-throughput");
        self.still = waits
            .filter(|_| self.phase != Some(Phase::Stopping) && served.is_none_or(|served| served < at))
            .map(|(rule, _)| Finding {
                rule: rule.id.clone(),
                cause: rule.cause.clone(),
                gravity: Gravity::Suspect,
                line: number,
                offset: self.offset + begin as u64,
                text: line.clone(),
                count: 1,
                outranks: rule.outranks.clone(),
            });
    }

    fn close(&mut self, last_line: u64) {
        let mut start = std::mem::take(&mut self.current);
        start.last_line = last_line;
        if let Some(still) = self.still.take() {
            start.findings.retain(|finding| finding.line != still.line);
            start.findings.push(still);
        }
        // A part without a start before the first one belongs to it: imports warn before the banner.
        let has = |start: &Start| {
            start.findings.iter().any(|f| f.rule == STARTING || f.gravity > Gravity::Harmless)
        };
        if let Some(before) = self.done.pop_if(|before| !has(before)) {
            start.line = before.line;
            let mut findings = before.findings;
            findings.append(&mut start.findings);
            start.findings = findings;
        }
        self.done.push(start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(text: &str, piece: usize) -> Vec<Start> {
        let rules = Rules::builtin();
        let mut starts = Starts::new(&rules);
        for piece in text.as_bytes().chunks(piece) {
            starts.push(piece);
        }
        starts.finish()
    }

    const TWO: &str = "\
INFO [importing.py:68] Triton not installed
(APIServer pid=7) INFO 11-24 03:00:00 [utils.py:261] non-default args: {'model': 'tiny'}
(APIServer pid=7) OSError: [Errno 98] Address already in use
INFO [importing.py:68] Triton not installed
(APIServer pid=9) INFO 11-24 03:01:00 [utils.py:261] non-default args: {'model': 'tiny'}
(APIServer pid=9) INFO:     Application startup complete.
(APIServer pid=9) INFO 11-24 03:02:00 [launcher.py:110] Shutting down FastAPI HTTP server.
(APIServer pid=9) OSError: [Errno 98] Address already in use";

    #[test]
    fn two_starts_in_one_log_are_two_however_it_comes_in() {
        let whole = starts(TWO, 4096);
        let lines: Vec<(u64, u64)> = whole.iter().map(|start| (start.line, start.last_line)).collect();
        assert_eq!(lines, [(1, 4), (5, 8)]);
        for piece in [1, 7, 50, 300] {
            assert_eq!(starts(TWO, piece), whole, "pieces of {piece}");
        }
        let fatal = |start: &Start| start.findings.iter().any(|finding| finding.gravity == Gravity::Fatal);
        assert!(
            fatal(&whole[0]) && !fatal(&whole[1]),
            "what comes after a good stop is no failure: {whole:#?}"
        );
    }

    #[test]
    fn lines_behind_what_is_missing_keep_their_numbers_and_places() {
        let (rules, text) = (Rules::builtin(), TWO.replace('\n', "\r\n"));
        let whole = starts(&text, 4096);
        let third = text.match_indices('\n').nth(2).map_or(0, |(at, _)| at + 1);
        let fourth = text.match_indices('\n').nth(3).map_or(0, |(at, _)| at + 1);
        let mut cut = Starts::new(&rules);
        cut.push(&text.as_bytes()[..third]);
        cut.skip(4, fourth as u64);
        cut.push(&text.as_bytes()[fourth..]);
        let seen = cut.finish();
        assert_eq!(seen[1].findings, whole[1].findings);
        assert_eq!(seen[1].last_line, 8);
    }

    #[test]
    fn an_empty_log_is_one_start_without_findings() {
        assert_eq!(starts("", 10), [Start { line: 1, last_line: 0, findings: Vec::new() }]);
    }

    #[test]
    fn the_line_on_tokens_that_stopped_coming_is_named_with_its_place() {
        let still = "INFO [loggers.py:257] Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 0.0 \
                     tokens/s, Running: 4 reqs, Waiting: 0 reqs\n";
        let text = format!("one\ntwo\n{still}three\nfour\n");
        for piece in [5, 4096] {
            let seen = starts(&text, piece);
            let finding = seen[0].findings.iter().find(|f| f.gravity == Gravity::Suspect).unwrap();
            assert_eq!((finding.line, finding.offset, finding.text.as_str()), (3, 8, still.trim_end()));
            assert_eq!(seen[0].last_line, 5);
        }
    }

    #[test]
    fn what_comes_before_the_first_banner_belongs_to_its_start_unless_it_failed() {
        let banner =
            "(APIServer pid=7) INFO 11-24 03:00:00 [utils.py:261] non-default args: {'model': 'tiny'}\n";
        let lines = |text: &str| -> Vec<(u64, u64)> {
            starts(text, 64).iter().map(|start| (start.line, start.last_line)).collect()
        };
        assert_eq!(lines(&format!("one\n{banner}two\n")), [(1, 3)]);
        assert_eq!(lines(&format!("{banner}one\n{banner}two\n")), [(1, 4)], "nothing came of the first");
        let failed = "(APIServer pid=7) OSError: [Errno 98] Address already in use\n";
        assert_eq!(lines(&format!("{failed}{banner}two\n")), [(1, 1), (2, 3)]);
    }

    #[test]
    fn tokens_that_stopped_coming_count_only_if_they_do_not_come_again() {
        let still = "INFO [loggers.py:257] Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 0.0 \
                     tokens/s, Running: 4 reqs, Waiting: 0 reqs\n";
        let moving = still.replace("generation throughput: 0.0", "generation throughput: 7.5");
        let answered = "INFO:     127.0.0.1:42348 - \"POST /v1/completions HTTP/1.1\" 200 OK\n";
        let hangs = |text: &str| {
            starts(text, 64).iter().flat_map(|s| &s.findings).any(|f| f.gravity == Gravity::Suspect)
        };
        assert!(hangs(still) && hangs(&format!("{moving}{answered}{still}")));
        assert!(!hangs(&format!("{still}{moving}")) && !hangs(&format!("{still}{answered}")));
    }
}
