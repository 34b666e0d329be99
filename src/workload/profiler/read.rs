//! One trace as a stream: every event is looked at once and forgotten, so that memory does not depend on the file. Pure: it is
//! given a reader.
//!
//! Kineto's files differ by version and by device, and other tools write the format too. So only the frame is insisted on (one
//! JSON object with a list of objects named `traceEvents`, read to its very end); a field of another type than usual counts as
//! not there.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use std::io::Read;

/// Times beyond this are nobody's: nanoseconds from 1970 reach it in 2033, and sums of two still fit.
const FARTHEST: i64 = 2_000_000_000_000_000_000;

/// What an event is about, by its `cat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Category {
    /// `cpu_op`: an operator, with the operators that it calls.
    Operator,
    /// `cuda_runtime`, `cuda_driver`: a call that may launch work for the GPU.
    Runtime,
    /// `kernel`.
    Kernel,
    /// `gpu_memcpy`, `gpu_memset`.
    Copy,
    /// `user_annotation`: among them the steps.
    Annotation,
    /// `python_function`.
    Python,
    /// Anything else, or none.
    #[default]
    Other,
}

impl Category {
    fn of(text: &str) -> Self {
        match text {
            "cpu_op" => Self::Operator,
            "kernel" => Self::Kernel,
            "gpu_memcpy" | "gpu_memset" => Self::Copy,
            "user_annotation" => Self::Annotation,
            "python_function" => Self::Python,
            "cuda_runtime" | "cuda_driver" | "xpu_runtime" | "xpu_driver" => Self::Runtime,
            _ => Self::Other,
        }
    }
}

/// What is read of one event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceEvent {
    /// `cat`.
    pub category: Category,
    /// First byte of `ph`; 0 if there is none.
    pub phase: u8,
    /// `name`.
    pub name: String,
    /// `ts` in nanoseconds after the trace's base.
    pub start_ns: Option<i64>,
    /// `dur` in nanoseconds, never negative.
    pub duration_ns: Option<i64>,
    /// `pid`; a text stands for itself by its hash.
    pub pid: i64,
    /// `tid`, likewise.
    pub tid: i64,
    /// `args.correlation`: of a launch and of what it launched.
    pub correlation: Option<i64>,
    /// `args.device`.
    pub device: Option<i64>,
}

impl TraceEvent {
    fn clear(&mut self) {
        let mut name = std::mem::take(&mut self.name);
        name.clear();
        *self = Self { name, ..Self::default() };
    }
}

/// Reads a trace to its end, gives every event to `each`, and returns those members of the document that `keep` names.
pub fn read<R: Read>(
    reader: R,
    keep: fn(&str) -> bool,
    each: impl FnMut(&TraceEvent),
) -> Result<Map<String, Value>, serde_json::Error> {
    document(reader, keep, &mut Heads { each, event: TraceEvent::default() })
}

/// Takes the next element of `traceEvents`.
pub(super) trait Elements {
    /// False at the end of the list.
    fn next<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error>;
}

/// As [`read`], with any view of the events.
pub(super) fn document<R: Read, E: Elements>(
    reader: R,
    keep: fn(&str) -> bool,
    elements: &mut E,
) -> Result<Map<String, Value>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_reader(reader);
    let members = Document { keep, elements }.deserialize(&mut json)?;
    json.end()?;
    Ok(members)
}

struct Heads<F> {
    each: F,
    event: TraceEvent,
}

impl<F: FnMut(&TraceEvent)> Elements for Heads<F> {
    fn next<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        self.event.clear();
        let more = list.next_element_seed(Fields { event: &mut self.event, inside: false })?.is_some();
        if more {
            (self.each)(&self.event);
        }
        Ok(more)
    }
}

struct Document<'a, E> {
    keep: fn(&str) -> bool,
    elements: &'a mut E,
}

impl<'de, E: Elements> DeserializeSeed<'de> for Document<'_, E> {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de, E: Elements> Visitor<'de> for Document<'_, E> {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a trace: one object with traceEvents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut kept = Map::new();
        let mut seen = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "traceEvents" {
                if std::mem::replace(&mut seen, true) {
                    return Err(A::Error::duplicate_field("traceEvents"));
                }
                map.next_value_seed(List { elements: &mut *self.elements })?;
            } else if (self.keep)(&key) {
                kept.insert(key, map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if seen { Ok(kept) } else { Err(A::Error::missing_field("traceEvents")) }
    }
}

struct List<'a, E> {
    elements: &'a mut E,
}

impl<'de, E: Elements> DeserializeSeed<'de> for List<'_, E> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de, E: Elements> Visitor<'de> for List<'_, E> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of trace events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while self.elements.next(&mut list)? {}
        Ok(())
    }
}

/// The members of an event, or those of its `args`.
struct Fields<'a> {
    event: &'a mut TraceEvent,
    inside: bool,
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        if self.inside { from.deserialize_any(self) } else { from.deserialize_map(self) }
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a trace event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let event = self.event;
        while let Some(key) = map.next_key_seed(Key { inside: self.inside })? {
            match key {
                Field::Category => {
                    map.next_value_seed(Text(|text: &str| event.category = Category::of(text)))?;
                }
                Field::Phase => map.next_value_seed(Text(|text: &str| {
                    event.phase = text.bytes().next().unwrap_or(0);
                }))?,
                Field::Name => map.next_value_seed(Text(|text: &str| {
                    event.name.clear();
                    event.name.push_str(text);
                }))?,
                Field::Start => event.start_ns = map.next_value_seed(Loose)?.nanoseconds(),
                Field::Duration => {
                    event.duration_ns = map.next_value_seed(Loose)?.nanoseconds().map(|ns| ns.max(0));
                }
                Field::Pid => event.pid = map.next_value_seed(Loose)?.id().unwrap_or_default(),
                Field::Tid => event.tid = map.next_value_seed(Loose)?.id().unwrap_or_default(),
                Field::Args => map.next_value_seed(Fields { event: &mut *event, inside: true })?,
                Field::Correlation => event.correlation = map.next_value_seed(Loose)?.id(),
                Field::Device => event.device = map.next_value_seed(Loose)?.id(),
                Field::Ignored => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    // `args` of another type than an object say nothing.
    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<(), A::Error> {
        IgnoredAny.visit_seq(list).map(drop)
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

enum Field {
    Category,
    Phase,
    Name,
    Start,
    Duration,
    Pid,
    Tid,
    Args,
    Correlation,
    Device,
    Ignored,
}

struct Key {
    inside: bool,
}

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Field, D::Error> {
        from.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, key: &str) -> Result<Field, E> {
        Ok(match (self.inside, key) {
            (true, "correlation") => Field::Correlation,
            (true, "device") => Field::Device,
            (true, _) => Field::Ignored,
            (false, "ph") => Field::Phase,
            (false, "cat") => Field::Category,
            (false, "name") => Field::Name,
            (false, "ts") => Field::Start,
            (false, "dur") => Field::Duration,
            (false, "pid") => Field::Pid,
            (false, "tid") => Field::Tid,
            (false, "args") => Field::Args,
            (false, _) => Field::Ignored,
        })
    }
}

/// Hands a text on; anything else is passed over.
struct Text<F>(F);

impl<'de, F: FnOnce(&str)> DeserializeSeed<'de> for Text<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, F: FnOnce(&str)> Visitor<'de> for Text<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        (self.0)(text);
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<(), A::Error> {
        IgnoredAny.visit_seq(list).map(drop)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        IgnoredAny.visit_map(map).map(drop)
    }
}

/// A number or an identity, whatever type it was written as.
struct Loose;

enum Scalar {
    Nothing,
    Whole(i64),
    Fraction(f64),
    /// Of a text.
    Hash(i64),
}

impl Scalar {
    /// The format counts in microseconds.
    fn nanoseconds(&self) -> Option<i64> {
        let ns = match self {
            Self::Whole(us) => us.checked_mul(1000)?,
            #[expect(clippy::cast_possible_truncation, reason = "the bounds are checked next")]
            Self::Fraction(us) if us.is_finite() => (us * 1000.0).round() as i64,
            Self::Fraction(_) | Self::Hash(_) | Self::Nothing => return None,
        };
        (-FARTHEST..=FARTHEST).contains(&ns).then_some(ns)
    }

    fn id(&self) -> Option<i64> {
        match self {
            Self::Whole(id) | Self::Hash(id) => Some(*id),
            Self::Fraction(_) | Self::Nothing => None,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Loose {
    type Value = Scalar;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Scalar, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Loose {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
        Ok(Scalar::Whole(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
        Ok(i64::try_from(value).map_or(Scalar::Nothing, Scalar::Whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
        Ok(Scalar::Fraction(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
        // FNV-1a: threads named by a text only have to be told apart.
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        Ok(Scalar::Hash(hash.cast_signed()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Scalar, E> {
        Ok(Scalar::Nothing)
    }

    fn visit_unit<E>(self) -> Result<Scalar, E> {
        Ok(Scalar::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Scalar, A::Error> {
        IgnoredAny.visit_seq(list).map(|_| Scalar::Nothing)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Scalar, A::Error> {
        IgnoredAny.visit_map(map).map(|_| Scalar::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> Result<Vec<TraceEvent>, serde_json::Error> {
        let mut out = Vec::new();
        read(text.as_bytes(), |_| false, |event| out.push(event.clone()))?;
        Ok(out)
    }

    #[test]
    fn times_are_exact_to_the_nanosecond() {
        let list = events(
            r#"{"traceEvents": [{"ts": 4632712573564.305, "dur": 82.636}, {"ts": 1791857026000001, "dur": 1}, {"ts": 0.001}]}"#,
        )
        .unwrap();
        assert_eq!((list[0].start_ns, list[0].duration_ns), (Some(4_632_712_573_564_305), Some(82_636)));
        assert_eq!((list[1].start_ns, list[1].duration_ns), (Some(1_791_857_026_000_001_000), Some(1000)));
        assert_eq!((list[2].start_ns, list[2].duration_ns), (Some(1), None));
    }

    #[test]
    fn fields_of_args_are_not_fields_of_the_event_nor_of_deeper_objects() {
        let list = events(
            r#"{"traceEvents": [{"ph": "X", "cat": "kernel", "args": {"cat": "cpu_op", "correlation": 7, "deep": {"device": 9}, "ts": 1}}]}"#,
        )
        .unwrap();
        assert_eq!(list[0].category, Category::Kernel);
        assert_eq!((list[0].correlation, list[0].device, list[0].start_ns), (Some(7), None, None));
    }

    #[test]
    fn a_field_of_another_type_is_not_there_and_nothing_else_suffers() {
        for odd in ["null", "true", "-1e999", "[1, {}]", "{\"a\": [0]}", "18446744073709551615", "\"x\""] {
            let text = format!(
                r#"{{"traceEvents": [{{"ph": {odd}, "cat": {odd}, "name": {odd}, "ts": {odd}, "dur": {odd}, "pid": {odd},
                "tid": {odd}, "args": {odd}}}, {{"name": "after", "args": {{"correlation": {odd}, "device": {odd}}}}}]}}"#
            );
            match events(&text) {
                Ok(list) => {
                    assert_eq!(list[0].start_ns, None, "{odd}");
                    assert_eq!(list[1].name, "after", "{odd}");
                }
                // serde_json refuses such a number.
                Err(_) => assert_eq!(odd, "-1e999"),
            }
        }
    }

    #[test]
    fn the_frame_is_insisted_on() {
        for text in [
            "{}",
            "[]",
            "{\"traceEvents\": [1]}",
            "{\"traceEvents\": {}}",
            "{\"traceEvents\": []} {",
            "{\"traceEvents\": []",
        ] {
            assert!(events(text).is_err(), "{text}");
        }
        assert!(events(r#"{"traceEvents": [], "traceEvents": []}"#).is_err());
    }

    #[test]
    fn the_members_asked_for_are_kept() {
        let text = r#"{"baseTimeNanoseconds": 5, "big": [1, 2], "traceEvents": [{}], "traceName": "x"}"#;
        let kept = read(text.as_bytes(), |key| key != "big", |_| ()).unwrap();
        assert_eq!(Value::Object(kept), serde_json::json!({"baseTimeNanoseconds": 5, "traceName": "x"}));
    }
}
