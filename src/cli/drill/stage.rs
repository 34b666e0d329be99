//! What a drill hands to the guards it starts: an invented GPU and a wall clock that jumps. Both would be a lie in a real
//! run, so a guard takes them only when it guards the simulator and its parent process is the very drill that wrote them;
//! a variable that was left in an environment does nothing.

use crate::config::{Plan, ServerKind};
use crate::event::ProcId;
use crate::health::gpu_script::{self, GpuScript};
use crate::supervisor::{os, proc};
use crate::time::{self, Jump};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Names the file.
pub const VARIABLE: &str = "VARCAS_DRILL";

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Who wrote it.
    pub drill: ProcId,
    /// An invented GPU instead of the machine's own.
    pub gpu: Option<GpuScript>,
    /// Jumps of the wall clock.
    pub clock: Vec<Jump>,
}

/// Takes what a drill has handed over, if this is a run of a drill.
pub fn enter(plan: &Plan) {
    let Some(path) = std::env::var_os(VARIABLE) else { return };
    match read(plan, Path::new(&path)) {
        Ok(stage) => {
            // A drill that is killed takes its guards along, each in good order.
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGTERM);
            if let Some(script) = stage.gpu {
                gpu_script::install(script);
            }
            if !stage.clock.is_empty() {
                time::let_wall_jump(stage.clock);
            }
        }
        Err(why) => eprintln!("note: {VARIABLE} is set and means nothing here: {why}"),
    }
}

fn read(plan: &Plan, path: &Path) -> Result<Stage, String> {
    if plan.server.kind != ServerKind::Sim {
        return Err("the server is not the simulator".to_owned());
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let stage: Stage = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    if proc::id(os::parent_pid()) != Some(stage.drill) {
        return Err("this run was not started by the drill that wrote it".to_owned());
    }
    Ok(stage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_but_the_child_of_a_drill_with_a_simulator_enters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stage.json");
        let write = |drill| {
            let stage = Stage { drill, gpu: None, clock: Vec::new() };
            std::fs::write(&path, serde_json::to_string(&stage).unwrap()).unwrap();
        };
        let mut plan = Plan::default();
        let parent = proc::id(os::parent_pid()).unwrap();
        write(parent);
        assert!(read(&plan, &path).unwrap_err().contains("not the simulator"));
        plan.server.kind = ServerKind::Sim;
        assert!(read(&plan, &path).is_ok());
        write(ProcId { start: parent.start + 1, ..parent });
        assert!(read(&plan, &path).unwrap_err().contains("not started by the drill"));
        assert!(read(&plan, &dir.path().join("none")).is_err());
    }
}
