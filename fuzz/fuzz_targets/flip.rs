//! The search after a flipped bit: on arbitrary bytes it ends and leaves them as they were; on a stream with one flipped bit, what
//! it finds gives the text back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::{Read, Write};
use varcas_guard::recovery::salvage::flip;

fuzz_target!(|data: &[u8]| {
    let Some((&[kind, low, high], rest)) = data.split_first_chunk() else { return };
    let place = usize::from(u16::from_le_bytes([low, high]));
    if kind % 2 == 0 {
        let mut raw = rest.to_vec();
        flip::find(&mut raw, place as u32, place as u32);
        assert_eq!(raw, rest);
        return;
    }
    let level = flate2::Compression::new(u32::from(kind / 2 % 10));
    let mut writer = flate2::write::DeflateEncoder::new(Vec::new(), level);
    writer.write_all(rest).expect("memory takes it");
    let good = writer.finish().expect("memory takes it");
    let mut crc = flate2::Crc::new();
    crc.update(rest);
    let mut raw = good.clone();
    raw[place / 8 % good.len()] ^= 1 << (place % 8);
    let broken = raw.clone();
    let found = flip::find(&mut raw, crc.sum(), rest.len() as u32);
    assert_eq!(raw, broken);
    if let Some(found) = found
        && found.at < raw.len()
    {
        raw[found.at] ^= 1 << found.bit;
        let mut text = Vec::new();
        flate2::read::DeflateDecoder::new(&raw[..])
            .read_to_end(&mut text)
            .expect("the found stream can be read");
        assert_eq!(text, rest);
    }
});
