//! What systemd is told of a run, and the units that start one.

mod e2e_support;

use e2e_support::{FAST, Place};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use varcas_guard::event::EventKind;
use varcas_guard::supervisor::proc;

#[test]
fn systemd_hears_that_a_run_is_ready_what_it_does_that_it_lives_and_that_it_stops() {
    let place = Place::new();
    let socket = place.path("notify");
    let heard = UnixDatagram::bind(&socket).unwrap();
    heard.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
    let config = place.config(FAST, "");
    let (port, config) = (place.port.to_string(), config.to_string_lossy().into_owned());
    let env = [
        ("NOTIFY_SOCKET".to_owned(), socket.display().to_string()),
        ("WATCHDOG_USEC".to_owned(), "2000000".to_owned()),
    ];
    let args = ["run", "--server", "sim", "--port", &port, "--config", &config, "--duration", "3s"];
    let mut running =
        place.start_with("out", &[&args[..], &["out", "--", "--max-model-len", "160"]].concat(), &env);
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    // The kernel keeps only so many unread words of a socket.
    let listen = |said: &mut Vec<String>, buffer: &mut [u8]| {
        while let Ok(length) = heard.recv(buffer) {
            said.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
    };
    let mut environment = None;
    while !running.is_over() {
        listen(&mut said, &mut buffer);
        // What the journal has of it is only what the guard adds.
        environment = environment.or_else(|| {
            let spawned = |kind: &EventKind| match kind {
                EventKind::ServerSpawned { proc, .. } => Some(*proc),
                _ => None,
            };
            proc::environ(running.events().iter().find_map(|event| spawned(&event.kind))?.pid)
        });
    }
    let done = running.wait();
    listen(&mut said, &mut buffer);
    assert_eq!(done.code, Some(0), "{}", done.told());
    assert_eq!(said.first().map(String::as_str), Some("READY=1\n"));
    for part in ["STATUS=attempt 1: measuring", "WATCHDOG=1\n", "STOPPING=1\n"] {
        assert!(said.iter().any(|word| word.starts_with(part)), "no {part} in {said:#?}");
    }
    let environment = String::from_utf8_lossy(&environment.unwrap()).into_owned();
    let has = |name: &str| environment.split('\0').any(|pair| pair.starts_with(&format!("{name}=")));
    assert!(has("VARCAS_SIM") && !has("NOTIFY_SOCKET") && !has("WATCHDOG_USEC"), "{environment}");
}

#[test]
fn the_units_are_what_systemd_takes() {
    let place = Place::new();
    let answer =
        place.ask(&["install", "systemd", "--dir", "units", "--", "--server", "sim", "--duration", "1m"]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let service = std::fs::read_to_string(place.path("units/varcas-guard.service")).unwrap();
    assert!(service.contains(r#""run" "--server" "sim" "--duration" "1m""#), "{service}");
    let verify = Command::new("systemd-analyze")
        .args(["--user", "verify", "units/varcas-guard.service", "units/varcas-guard.timer"])
        .env("XDG_RUNTIME_DIR", place.path(""))
        .current_dir(place.path(""))
        .output();
    match verify {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !said.contains("units/"), "{output:?}");
        }
        Err(error) => println!("SKIPPED: no systemd-analyze: {error}"),
    }
}
