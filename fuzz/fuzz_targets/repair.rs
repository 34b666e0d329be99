//! Mending arbitrary text gives strict JSON or nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use varcas_guard::recovery::salvage::repair;

fuzz_target!(|data: &[u8]| {
    if let Some((mended, used)) = repair::event(data) {
        assert!(used <= data.len());
        let value: Value = serde_json::from_slice(&mended).expect("a mended event is strict JSON");
        assert!(value["name"].is_string() || !value["name"].is_null());
    }
    if let Some((mended, used)) = repair::value(data) {
        assert!(used <= data.len());
        serde_json::from_slice::<Value>(&mended).expect("a mended value is strict JSON");
    }
});
