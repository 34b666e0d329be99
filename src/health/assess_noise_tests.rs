use super::*;
use proptest::prelude::*;

/// What a second may bring: everything that is no counter, at will.
#[derive(Debug, Clone)]
struct Noise {
    state: char,
    cpu: f64,
    rss: i32,
    gpu: u8,
    scrape_fails: bool,
    load_silent: bool,
    counter: u8,
    line: u8,
    wall: i64,
}

fn noise() -> impl Strategy<Value = Noise> {
    let state = prop::sample::select(vec!['S', 'R', 'T', 'D', 'Z']);
    let wall = prop_oneof![50 => Just(0i64), 1 => -5000i64..5000];
    let numbers = (0.0..2.0, -100i32..100, 0u8..5, 0u8..6, 0u8..60);
    (state, numbers, any::<bool>(), prop::bool::weighted(0.2), wall).prop_map(
        |(state, (cpu, rss, gpu, counter, line), scrape_fails, load_silent, wall)| Noise {
            state,
            cpu,
            rss,
            gpu,
            scrape_fails,
            load_silent,
            counter,
            line,
            wall,
        },
    )
}

fn disturb(world: &mut World, noise: &Noise, moves: bool) {
    world.second += 1;
    world.wall += noise.wall;
    world.process.state = noise.state;
    world.process.cpu_s += noise.cpu;
    world.process.rss = world.process.rss.saturating_add_signed(i64::from(noise.rss) << 14).max(1 << 20);
    world.gpu = match noise.gpu {
        0 => None,
        1 => Some(Reading::Stale),
        2 => gpu(100, 0, 110.0),
        3 => gpu(0, 0, 70.0),
        _ => gpu(95, 40, 600.0),
    };
    match noise.line {
        0 => world.event(&finding("kineto-thread-mismatch")),
        1 => world.event(&finding("profiler-flush-stall")),
        2 => world.event(&window(WindowEvent::Flushing { window: 1 })),
        3 => world.event(&window(WindowEvent::Closed {
            window: 1,
            file: String::new(),
            bytes: 0,
            first_step: 0,
            last_step: 1,
            recorded_s: 0.0,
            stop_s: 0.0,
            export_s: 0.0,
            content: Default::default(),
            why: String::new(),
        })),
        _ => {}
    }
    let mut counter = noise.counter;
    if moves {
        // A counter that moves where nobody could read it is not seen to move.
        if noise.scrape_fails {
            counter = 3 + counter % 3;
        }
        match counter {
            0 => world.engine.iterations += 1.0,
            1 => world.engine.prompt_tokens += 512.0,
            2 => world.engine.generation_tokens += 1.0,
            3 => world.load.chunks += 1,
            4 => world.load.completed += 1,
            _ => world.load.output_tokens += 1,
        }
    }
    let engine = if noise.scrape_fails {
        Reading::Unavailable { why: "no answer".to_owned() }
    } else {
        Reading::Value(world.engine)
    };
    world.event(&EventKind::EngineSampled(engine));
    if moves && counter >= 3 || !noise.load_silent {
        let load = world.load;
        world.event(&EventKind::LoadProgressed(load));
    }
    world.surroundings();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_kill_while_any_counter_moves(
        noise in prop::collection::vec(noise(), 1..40),
        every in 1u64..29,
        warm_up in any::<bool>(),
    ) {
        let mut world = World::new();
        world.enter(if warm_up { Phase::WarmUp } else { Phase::Measuring });
        // Patience is at least 30 s (a minute, halved by the Kineto message); a counter moves more often than that.
        for second in 0..1200 {
            let noise = &noise[second as usize % noise.len()];
            disturb(&mut world, noise, second % every == 0);
            prop_assert_eq!(world.act(0), None);
        }
    }

    #[test]
    fn a_standstill_never_outlasts_the_longest_patience(noise in prop::collection::vec(noise(), 1..40)) {
        let mut world = World::serving();
        for _ in 0..400 {
            for noise in &noise {
                let mut noise = noise.clone();
                // No flush, no jump of the clock, and both counters can be read.
                (noise.line, noise.wall, noise.scrape_fails, noise.load_silent) = (9, 0, false, false);
                disturb(&mut world, &noise, false);
            }
            if world.second > 30 + 182 { break; }
        }
        prop_assert!(world.act(30).is_some_and(|(seconds, _)| seconds <= 182), "{:?}", world.told);
    }

    #[test]
    fn no_order_of_events_makes_it_panic(noise in prop::collection::vec((noise(), any::<bool>(), 0u8..12), 1..60)) {
        let mut world = World::new();
        for (noise, moves, phase) in noise {
            world.enter(match phase {
                0 => Phase::Loading, 1 => Phase::WarmUp, 2 => Phase::Measuring, 3 => Phase::Flushing, _ => world.assessor.phase,
            });
            if phase == 11 { world.second = world.second.saturating_sub(100); }
            disturb(&mut world, &noise, moves);
        }
    }
}
