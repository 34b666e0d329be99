//! A whole Slurm on one machine for one test: munged, slurmctld and slurmd from the distribution's packages, in a folder
//! and on ports of their own, without cgroups and without systemd, and gone with the value.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

use crate::e2e_support::{Place, free_port, wait_for};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use varcas_guard::event::ProcId;
use varcas_guard::supervisor::{os, proc};

/// The folder has a name of its own in every environment and command line of this cluster.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    daemons: Vec<Child>,
    /// What belongs to the daemons themselves.
    helpers: Vec<ProcId>,
}

/// Where Debian puts it; not in everybody's `PATH`.
fn program(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

impl Cluster {
    /// `None`, and a line that says so, where Slurm is not installed or we are not root, as slurmd must be.
    pub(crate) fn start() -> Option<Self> {
        let missing: Vec<&str> = ["munged", "slurmctld", "slurmd", "sbatch"]
            .into_iter()
            .filter(|name| program(name).is_none())
            .collect();
        if !missing.is_empty() || os::own_uid() != 0 {
            println!("SKIPPED: a Slurm of one node needs root and {missing:?}");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("slurm-").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut cluster = Self { dir, daemons: Vec::new(), helpers: Vec::new() };
        cluster.write_settings();
        let at = |name: &str| cluster.path(name).display().to_string();
        let (key, socket, log, seed) = (at("key"), at("munge"), at("munged.log"), at("seed"));
        let pid = at("munged.pid");
        let munged = ["--foreground", "--force", "--key-file", &key, "--socket", &socket, "--pid-file", &pid];
        cluster.daemon("munged", &[&munged[..], &["--log-file", &log, "--seed-file", &seed]].concat());
        wait_for("munged", || Path::new(&socket).exists().then_some(()));
        cluster.daemon("slurmctld", &["-D"]);
        cluster.daemon("slurmd", &["-D", "-N", "node"]);
        wait_for("the node", || (cluster.ask("sinfo", &["-h", "-o", "%T"]).trim() == "idle").then_some(()));
        cluster.helpers = cluster.processes();
        Some(cluster)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_settings(&self) {
        std::fs::write(self.path("key"), (0..=255).collect::<Vec<u8>>()).unwrap();
        std::fs::set_permissions(self.path("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        for folder in ["state", "spool"] {
            std::fs::create_dir(self.path(folder)).unwrap();
        }
        // slurmd believes that a file is a GPU.
        std::fs::write(self.path("gres.conf"), "Name=gpu File=/dev/null\n").unwrap();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
        let at = self.dir.path().display();
        let mut text = format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={}\nSlurmdPort={}\n\
             AuthType=auth/munge\nAuthInfo=socket={at}/munge,cred_expire=5\nSlurmUser=root\nSlurmdUser=root\n",
            free_port(),
            free_port(),
        );
        let _ = write!(
            text,
            "StateSaveLocation={at}/state\nSlurmdSpoolDir={at}/spool\nSlurmctldPidFile={at}/slurmctld.pid\n\
             SlurmdPidFile={at}/slurmd.pid\nSlurmctldLogFile={at}/slurmctld.log\nSlurmdLogFile={at}/slurmd.log\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSelectType=select/cons_tres\n\
             SelectTypeParameters=CR_CPU\nJobAcctGatherType=jobacct_gather/none\nSwitchType=switch/none\n\
             MpiDefault=none\nMailProg=/bin/true\nReturnToService=2\nJobRequeue=0\nGresTypes=gpu\n\
             SchedulerParameters=sched_interval=1,batch_sched_delay=0\nSlurmdParameters=config_overrides\n\
             NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=16 Gres=gpu:1 State=UNKNOWN\n\
             PartitionName=test Nodes=node Default=YES MaxTime=INFINITE State=UP\n"
        );
        std::fs::write(self.path("slurm.conf"), text).unwrap();
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(name).unwrap());
        command.env("SLURM_CONF", self.path("slurm.conf")).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn daemon(&mut self, name: &str, args: &[&str]) {
        let out = File::create(self.path(&format!("{name}.out"))).unwrap();
        let error = out.try_clone().unwrap();
        // Also of a test that is killed nothing may stay.
        let mut command = self.command("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program(name).unwrap()).args(args);
        self.daemons.push(command.stdout(out).stderr(error).spawn().unwrap());
    }

    /// What one of Slurm's commands prints.
    pub(crate) fn ask(&self, name: &str, args: &[&str]) -> String {
        let output = self.command(name).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// Submits a script from the folder of `place`, with nothing of the test's own environment but what a login has.
    pub(crate) fn submit(&self, place: &Place, script: &str) -> Job<'_> {
        let mut command = self.command("sbatch");
        command.arg("--parsable").arg(script).current_dir(place.path(""));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("SLURM_CONF", self.path("slurm.conf")).env("TMPDIR", place.path("t"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Job { cluster: self, id: String::from_utf8(output.stdout).unwrap().trim().to_owned() }
    }

    /// Processes of this cluster, whose environment names its folder, without the daemons.
    fn processes(&self) -> Vec<ProcId> {
        let name = self.dir.path().to_string_lossy().into_owned();
        let daemons: Vec<i32> = self.daemons.iter().map(|child| i32::try_from(child.id()).unwrap()).collect();
        let ours = |pid: &i32| {
            !daemons.contains(pid)
                && proc::environ(*pid).is_some_and(|block| String::from_utf8_lossy(&block).contains(&name))
        };
        proc::pids().into_iter().filter(ours).filter_map(proc::id).collect()
    }

    /// Those of jobs, the job's own and Slurm's.
    fn of_jobs(&self) -> Vec<ProcId> {
        self.processes().into_iter().filter(|id| !self.helpers.contains(id)).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // In reverse: slurmd first, so that nothing is started any more.
        while let Some(mut child) = self.daemons.pop() {
            drop(child.kill());
            drop(child.wait());
        }
        // Their helpers, and of a test that failed also slurmstepd and the job.
        for id in self.processes() {
            drop(os::signal(id, os::SIGKILL));
        }
    }
}

/// A job that was submitted.
pub(crate) struct Job<'a> {
    cluster: &'a Cluster,
    pub(crate) id: String,
}

impl Job<'_> {
    /// What `scontrol show job` says, by its names.
    pub(crate) fn facts(&self) -> BTreeMap<String, String> {
        let text = self.cluster.ask("scontrol", &["--oneliner", "show", "job", &self.id]);
        let pair = |word: &str| word.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        text.split_whitespace().filter_map(pair).collect()
    }

    /// Waits for its end, and for that of its last process.
    pub(crate) fn wait(&self) -> BTreeMap<String, String> {
        let over = ["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY"];
        let facts = wait_for("the job's end", || {
            let facts = self.facts();
            facts.get("JobState").is_some_and(|state| over.contains(&state.as_str())).then_some(facts)
        });
        wait_for("the job's last process", || self.cluster.of_jobs().is_empty().then_some(()));
        facts
    }
}
