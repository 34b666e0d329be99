//! tmux, which draws what it is sent as a terminal does.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use varcas_guard::time::instant_now;

/// Long: the machine may be busy. A test that works never waits so long.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(300);

/// A tmux server of its own with one window, killed when this is dropped.
pub(crate) struct Tmux {
    socket: String,
}

/// Why screens cannot be driven here, if they cannot.
pub(crate) fn no_tmux() -> Option<&'static str> {
    let found = Command::new("tmux").arg("-V").output().is_ok_and(|output| output.status.success());
    (!found).then_some("skipped: tmux is not installed")
}

impl Tmux {
    /// Runs a program of the test with these arguments in `folder`, with this environment beside the inherited one. When
    /// it has ended, the screen stays and says so.
    pub(crate) fn start(size: (u32, u32), folder: &Path, env: &[(&str, &str)], args: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let socket = format!("vg-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let this = Self { socket };
        let quote = |text: &str| format!("'{text}'");
        let mut line: Vec<String> = vec!["env -u NO_COLOR".to_owned()];
        line.extend(env.iter().map(|(name, value)| quote(&format!("{name}={value}"))));
        line.push(quote(env!("CARGO_BIN_EXE_varcas-guard")));
        line.extend(args.iter().map(|arg| quote(arg)));
        let line = format!("{}; echo ended with $?; exec sleep 1000", line.join(" "));
        let (columns, rows) = (size.0.to_string(), size.1.to_string());
        let folder = folder.to_string_lossy();
        let args =
            ["-f", "/dev/null", "-u", "new-session", "-d", "-x", &columns, "-y", &rows, "-c", &folder, &line];
        this.tmux(&args);
        this
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.socket]).args(args);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("VARCAS_") || name == "TMUX" {
                command.env_remove(name);
            }
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "tmux {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What is on the screen.
    pub(crate) fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same with colours as escape sequences.
    pub(crate) fn painted(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// The screen and everything that has left it at the top, with broken lines joined.
    pub(crate) fn everything(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-J", "-S", "-"])
    }

    pub(crate) fn resize(&self, columns: u32, rows: u32) {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    }

    /// Types.
    pub(crate) fn keys(&self, keys: &[&str]) {
        let mut args = vec!["send-keys"];
        args.extend(keys);
        self.tmux(&args);
    }

    /// Waits until the screen looks so, and gives it.
    pub(crate) fn until(&self, what: &str, looks: impl Fn(&str) -> bool) -> String {
        let began = instant_now();
        loop {
            let screen = self.screen();
            if looks(&screen) {
                return screen;
            }
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}:\n{screen}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// Waits for the end of the program, and gives everything it has printed.
    pub(crate) fn until_ended(&self, code: i32) -> String {
        let end = format!("ended with {code}");
        self.until(&end, |screen| screen.contains(&end));
        self.everything()
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        drop(Command::new("tmux").args(["-L", &self.socket, "kill-server"]).output());
    }
}
