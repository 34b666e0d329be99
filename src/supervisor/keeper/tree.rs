//! Who belongs to the server. A process is ours when its parent is ours, when it is in a session of ours, or when its
//! environment carries the mark of the run; one way alone does not do:
//!
//! * a process that double-forks and calls setsid leaves parents, group and session behind, but keeps the mark;
//! * `setproctitle`, which vLLM uses, overwrites the environment that `/proc` shows (measured: the mark is gone in every
//!   `VLLM::` process), but those keep parent and session;
//! * an orphan comes back to us by reparenting, because we are a subreaper.
//!
//! Deaths are noticed through pidfds. How our own and adopted children died, the wait says; of others, their zombie or,
//! since Linux 6.15, the pidfd.

use crate::event::{EventKind, ExitHow, ProcId};
use crate::supervisor::os::{self, Interest, PidFd};
use crate::supervisor::proc::{self, Stat};
use crate::supervisor::run_id::MARK;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::AsFd;
use std::time::Duration;

/// Who looks after the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stance {
    /// The keeper: its children and its session are the tree, and it may reap any child.
    Keeper,
    /// Somebody else, after the keeper's death: has other children too, so it reaps only what it recognised.
    Outsider,
}

/// Receives what there is to report.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(EventKind);

/// A living process of the tree.
#[derive(Debug)]
pub(crate) struct Member {
    /// As last read.
    pub(crate) stat: Stat,
    /// `None` where the kernel has no pidfds or we have no descriptor left; then only scans notice the death.
    pub(crate) handle: Option<PidFd>,
    /// Its handle says that it is dead, but it is not buried yet.
    finished: bool,
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    run_id: String,
    stance: Stance,
    me: i32,
    keep_out: BTreeSet<i32>,
    members: BTreeMap<i32, Member>,
    /// Examined and not ours, or ours and already reported dead. Pid to start time.
    strangers: HashMap<i32, u64>,
    main: Option<ProcId>,
    last_reaped: Option<Stat>,
    /// The session of a keeper that is dead.
    inherited: Option<i32>,
    /// Dead, ours, and for their own parents to reap as long as those live.
    bodies: Vec<ProcId>,
}

impl Tree {
    /// A tree without members. Processes in `keep_out` and this process never become members.
    pub(crate) fn new(run_id: &str, stance: Stance, keep_out: &[i32]) -> Self {
        Self {
            run_id: run_id.to_owned(),
            stance,
            me: os::own_pid(),
            keep_out: keep_out.iter().copied().chain([os::own_pid(), 1]).collect(),
            members: BTreeMap::new(),
            strangers: HashMap::new(),
            main: None,
            last_reaped: None,
            inherited: None,
            bodies: Vec::new(),
        }
    }

    /// The living members.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Whether nobody is left, as far as the last look went.
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The server's first process, also after its death.
    pub(crate) fn main(&self) -> Option<ProcId> {
        self.main
    }

    /// The child that was reaped last without having been a member.
    pub(crate) fn last_reaped(&self) -> Option<&Stat> {
        self.last_reaped.as_ref()
    }

    /// The server's first process, just started by us.
    pub(crate) fn set_main(&mut self, stat: Stat) {
        self.main = Some(stat.id);
        self.strangers.remove(&stat.id.pid);
        let handle = PidFd::open(stat.id).ok().flatten();
        self.members.insert(stat.id.pid, Member { stat, handle, finished: false });
    }

    /// Everybody in the session of this keeper is ours once it is dead. As long as one of them lives, the kernel gives its
    /// number to nobody else.
    pub(crate) fn inherit_session(&mut self, keeper: ProcId) {
        self.inherited = Some(keeper.pid);
    }

    /// A process that somebody else knows to be ours, if it still lives.
    pub(crate) fn adopt_known(&mut self, id: ProcId) {
        if let Some(stat) = proc::stat(id.pid).filter(|stat| stat.id == id && !stat.is_dead()) {
            self.adopt(stat, &mut |_| ());
        }
    }

    /// Looks for new members, and for changed names of the old ones. `thorough` examines strangers again by parentage
    /// and session: between two looks an orphan of ours may have come to us.
    pub(crate) fn scan(&mut self, thorough: bool, tell: Tell<'_>) {
        let listed: HashSet<i32> = proc::pids().into_iter().collect();
        self.strangers.retain(|pid, _| listed.contains(pid));
        self.refresh(tell);
        let mut candidates = Vec::new();
        for pid in listed {
            let known = self.members.contains_key(&pid) || self.keep_out.contains(&pid);
            if known || (!thorough && self.strangers.contains_key(&pid)) {
                continue;
            }
            let Some(stat) = proc::stat(pid) else { continue };
            if self.strangers.get(&pid) == Some(&stat.id.start) {
                candidates.push(stat);
            } else if self.is_marked(&stat) {
                self.adopt(stat, tell);
            } else {
                candidates.push(stat);
            }
        }
        loop {
            let sessions = self.sessions();
            let (ours, rest): (Vec<_>, Vec<_>) =
                candidates.into_iter().partition(|stat| self.is_related(stat, &sessions));
            candidates = rest;
            if ours.is_empty() {
                break;
            }
            for stat in ours {
                self.adopt(stat, tell);
            }
        }
        for stat in candidates {
            // In the middle of exec the environment is empty for a moment: ask again next time.
            let is_kernel = stat.ppid == 2 || stat.id.pid == 2;
            let undecided =
                !is_kernel && !stat.is_dead() && proc::environ(stat.id.pid).is_some_and(|e| e.is_empty());
            if !undecided {
                self.strangers.insert(stat.id.pid, stat.id.start);
            }
        }
    }

    fn refresh(&mut self, tell: Tell<'_>) {
        for member in self.members.values_mut() {
            let Some(now) = proc::stat(member.stat.id.pid).filter(|now| now.id == member.stat.id) else {
                member.finished = true;
                continue;
            };
            if now.comm != member.stat.comm && now.comm.starts_with("VLLM::") {
                tell(EventKind::ProcessSeen { proc: now.id, ppid: now.ppid, comm: now.comm.clone() });
            }
            member.stat = now;
        }
    }

    fn is_marked(&self, stat: &Stat) -> bool {
        let environ = proc::environ(stat.id.pid).unwrap_or_default();
        proc::variable(&environ, MARK) == Some(self.run_id.as_bytes())
    }

    fn is_related(&self, stat: &Stat, sessions: &BTreeSet<i32>) -> bool {
        let by_parent =
            self.members.contains_key(&stat.ppid) || (self.stance == Stance::Keeper && stat.ppid == self.me);
        by_parent || sessions.contains(&stat.session)
    }

    /// Sessions in which everybody is ours. For the keeper: its own. For an outsider: those of living members whose
    /// leader is dead (the keeper) or a member; never the session of a living stranger, such as somebody's shell.
    fn sessions(&self) -> BTreeSet<i32> {
        if self.stance == Stance::Keeper {
            return BTreeSet::from([self.me]);
        }
        let ours = |leader: i32| self.members.contains_key(&leader) || proc::stat(leader).is_none();
        let sessions: BTreeSet<i32> =
            self.members.values().map(|member| member.stat.session).chain(self.inherited).collect();
        sessions.into_iter().filter(|leader| *leader > 1 && ours(*leader)).collect()
    }

    fn adopt(&mut self, stat: Stat, tell: Tell<'_>) {
        if self.keep_out.contains(&stat.id.pid) || self.members.contains_key(&stat.id.pid) {
            return;
        }
        let ended = self.strangers.get(&stat.id.pid) == Some(&stat.id.start);
        if stat.is_dead() {
            // A dead child of ours is reaped by `bury`; a dead child of another is its business, once reported.
            if stat.ppid != self.me && !ended {
                tell(seen(&stat));
                tell(self.exited(&stat, os::decode_status(stat.exit_status)));
                self.strangers.insert(stat.id.pid, stat.id.start);
                self.bodies.push(stat.id);
            }
            return;
        }
        let handle = match PidFd::open(stat.id) {
            Ok(Some(handle)) => Some(handle),
            Ok(None) => return,
            Err(_) => None,
        };
        self.strangers.remove(&stat.id.pid);
        tell(seen(&stat));
        self.members.insert(stat.id.pid, Member { stat, handle, finished: false });
    }

    fn exited(&self, stat: &Stat, how: ExitHow) -> EventKind {
        EventKind::ProcessExited {
            proc: stat.id,
            comm: stat.comm.clone(),
            how,
            main: self.main == Some(stat.id),
        }
    }

    /// Everything to poll for deaths.
    pub(crate) fn interests(&self) -> Vec<Interest<'_>> {
        let handles =
            self.members.values().filter(|member| !member.finished).filter_map(|m| m.handle.as_ref());
        handles.map(|handle| Interest { fd: handle.as_fd(), write: false }).collect()
    }

    /// Waits until a member dies or the time is over.
    pub(crate) fn wait(&mut self, timeout: Duration) {
        // An error leaves us with the next scan, which finds the dead as well.
        drop(os::poll(&self.interests(), timeout));
    }

    /// Reports the dead and reaps those that are ours to reap. Says whether children were reaped that no scan had found:
    /// then there may be more of them.
    pub(crate) fn bury(&mut self, tell: Tell<'_>) -> bool {
        self.bury_and(&|_| (), tell)
    }

    /// The same, and kills everybody in the process group of whom it reaps: against those who fork faster than we list.
    pub(crate) fn bury_striking_groups(&mut self, tell: Tell<'_>) -> bool {
        let me = self.me;
        // Groups of our own session only, never our own group. Before it is reaped, the zombie pins the number.
        let strike = move |zombie: &Stat| {
            if zombie.session == me && zombie.pgrp != me {
                os::kill_group_of_zombie(zombie.pgrp);
            }
        };
        self.bury_and(&strike, tell)
    }

    fn bury_and(&mut self, before_reaping: &dyn Fn(&Stat), tell: Tell<'_>) -> bool {
        let mut unexpected = false;
        if self.stance == Stance::Keeper {
            while let Some(pid) = os::peek_dead_child() {
                let stat = proc::stat(pid);
                if let Some(stat) = &stat {
                    before_reaping(stat);
                }
                let Some(how) = os::reap_child(pid) else { break };
                unexpected |= !self.members.contains_key(&pid);
                self.bury_child(pid, stat, how, tell);
            }
        }
        if self.stance == Stance::Outsider {
            let me = self.me;
            self.bodies.retain(|id| match proc::stat(id.pid).filter(|now| now.id == *id) {
                Some(now) if now.ppid == me => os::reap_child(id.pid).is_none(),
                now => now.is_some(),
            });
        }
        self.mark_finished();
        let finished: Vec<i32> =
            self.members.iter().filter(|(_, member)| member.finished).map(|(pid, _)| *pid).collect();
        for pid in finished {
            let Some(member) = self.members.get_mut(&pid) else { continue };
            let now = proc::stat(pid).filter(|now| now.id == member.stat.id);
            let how = match &now {
                Some(now) if !now.is_dead() => {
                    member.finished = false;
                    continue;
                }
                Some(now) if now.ppid == self.me => match self.stance {
                    // Dead after the wait above, or held back by a debugger: the next call gets it.
                    Stance::Keeper => continue,
                    Stance::Outsider => os::reap_child(pid).unwrap_or(ExitHow::Unknown),
                },
                // Its own parent has not reaped it yet, so the kernel can still say how it died. If that parent dies
                // without having reaped it, the body is ours.
                Some(now) => {
                    self.bodies.push(now.id);
                    decode_foreign(now)
                }
                None => member.handle.as_ref().and_then(PidFd::ending).unwrap_or(ExitHow::Unknown),
            };
            let last = now.unwrap_or_else(|| member.stat.clone());
            self.members.remove(&pid);
            self.strangers.insert(pid, last.id.start);
            tell(self.exited(&last, how));
        }
        unexpected
    }

    fn bury_child(&mut self, pid: i32, stat: Option<Stat>, how: ExitHow, tell: Tell<'_>) {
        if self.keep_out.contains(&pid) {
            return;
        }
        if let Some(member) = self.members.remove(&pid) {
            let last = stat.filter(|now| now.id == member.stat.id).unwrap_or(member.stat);
            tell(self.exited(&last, how));
        } else if let Some(stat) = stat {
            // Lived too short to be seen before. One that died as somebody else's child is reported already.
            if self.strangers.get(&pid) != Some(&stat.id.start) {
                tell(seen(&stat));
                tell(self.exited(&stat, how));
            }
            self.last_reaped = Some(stat);
        }
        self.strangers.remove(&pid);
    }

    fn mark_finished(&mut self) {
        let ready = {
            let interests = self.interests();
            os::poll(&interests, Duration::ZERO).unwrap_or_else(|_| vec![false; interests.len()])
        };
        let watched =
            self.members.values_mut().filter(|member| !member.finished && member.handle.is_some()).zip(ready);
        for (member, ready) in watched {
            member.finished = ready;
        }
        for member in self.members.values_mut().filter(|member| member.handle.is_none()) {
            let id = member.stat.id;
            member.finished = proc::stat(id.pid).is_none_or(|now| now.id != id || now.is_dead());
        }
    }
}

fn seen(stat: &Stat) -> EventKind {
    EventKind::ProcessSeen { proc: stat.id, ppid: stat.ppid, comm: stat.comm.clone() }
}

/// 0 in the status field of a zombie is either exit code 0 or "you may not know": only our own user's is believed.
fn decode_foreign(zombie: &Stat) -> ExitHow {
    if zombie.exit_status == 0 && proc::uid(zombie.id.pid) != Some(os::own_uid()) {
        return ExitHow::Unknown;
    }
    os::decode_status(zombie.exit_status)
}
