//! What guard and keeper say to each other: an order survives the wire in any pieces, and any bytes give either an order or an
//! error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use varcas_guard::event::EventKind;
use varcas_guard_fuzz::pieces;

#[path = "../../src/supervisor/keeper/wire.rs"]
mod wire;

use wire::{KeeperSpec, Order, Target, encode, take_lines};

fn lines(data: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (mut buffer, mut lines) = (Vec::new(), Vec::new());
    for piece in pieces(data) {
        buffer.extend_from_slice(piece);
        lines.extend(take_lines(&mut buffer));
    }
    (lines, buffer)
}

/// An order for each stretch between 0xFF, of any text.
fn orders(data: &[u8]) -> Vec<Order> {
    let texts = data.split(|byte| *byte == 0xFF).map(|text| String::from_utf8_lossy(text).into_owned());
    texts
        .map(|text| match text.len() % 4 {
            0 => Order::Spawn {
                argv: text.split(' ').map(str::to_owned).collect(),
                env: vec![(text.clone(), text.clone())],
                cwd: PathBuf::from(&text),
                log: PathBuf::from("/x"),
            },
            1 => Order::Signal { signal: text.len() as i32, target: Target::Group, why: text },
            2 => Order::KillAll { why: text },
            _ => Order::Quit,
        })
        .collect()
}

fuzz_target!(|data: &[u8]| {
    let (found, rest) = lines(data);
    let slow: Vec<Vec<u8>> = data.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let (last, whole) = slow.split_last().expect("split gives one at least");
    assert_eq!(&rest, last);
    assert_eq!(found, whole.iter().filter(|line| !line.is_empty()).cloned().collect::<Vec<_>>());
    for line in &found {
        if let Ok(order) = serde_json::from_slice::<Order>(line) {
            let bytes = encode(&order).expect("an order can be written");
            assert_eq!(serde_json::from_slice::<Order>(&bytes).expect("and read"), order);
        }
        let _ = serde_json::from_slice::<KeeperSpec>(line);
        let _ = serde_json::from_slice::<EventKind>(line);
    }
    let orders = orders(data);
    let bytes: Vec<u8> =
        orders.iter().flat_map(|order| encode(order).expect("an order can be written")).collect();
    let (found, rest) = lines(&bytes);
    assert!(rest.is_empty());
    let found: Vec<Order> =
        found.iter().map(|line| serde_json::from_slice(line).expect("and read")).collect();
    assert_eq!(found, orders);
});
