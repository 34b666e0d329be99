//! Asks the driver six times for all GPUs and prints how long each answer took, and the first, second and sixth as JSON:
//! the first loads the library, and it and the sixth have details. `cargo run --example nvml_once`.

use std::time::Duration;
use varcas_guard::health::gpu::GpuSource;
use varcas_guard::health::nvml::NvmlSource;
use varcas_guard::time::instant_now;

fn main() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut source = NvmlSource::start()?;
        for number in 1..=6 {
            let began = instant_now();
            let sample = source.sample().await;
            let took = began.elapsed();
            println!("sample {number} took {:.1} ms", took.as_secs_f64() * 1e3);
            if matches!(number, 1 | 2 | 6) {
                println!("{}", serde_json::to_string_pretty(&sample).map_err(std::io::Error::other)?);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    })
}
