//! Holds processes on one CPU while they take turns.
//!
//! A round trip between two processes costs several times as much when the kernel has them on two CPUs, of which one always sleeps,
//! and where it puts them it leaves them. Without this, luck decides whether baseline and daemon are alike.

use anyhow::Context as _;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The threads that are held, and where they were allowed before. They are let go with this value.
#[derive(Debug)]
pub(crate) struct OneCpu(Vec<(Pid, CpuSet)>);

impl OneCpu {
    /// Holds this process, the given ones and all that these have started.
    pub(crate) fn hold(processes: &[u32]) -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let mut one = CpuSet::new();
        one.set(last.context("no CPU is allowed")?)?;
        let mut held = Self(Vec::new());
        for process in processes.iter().copied().chain([std::process::id()]) {
            for thread in threads(process, process != std::process::id())? {
                // A thread may have ended meanwhile.
                let Ok(before) = sched_getaffinity(thread) else { continue };
                if sched_setaffinity(thread, &one).is_ok() {
                    held.0.push((thread, before));
                }
            }
        }
        Ok(held)
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        for (thread, before) in &self.0 {
            // One that has ended needs nothing.
            let _ = sched_setaffinity(*thread, before);
        }
    }
}

/// The threads of a process, and of those that it has started.
fn threads(process: u32, with_children: bool) -> anyhow::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let entry = entry?;
        found.push(Pid::from_raw(entry.file_name().to_string_lossy().parse()?));
        if with_children {
            let children = std::fs::read_to_string(entry.path().join("children")).unwrap_or_default();
            for child in children.split_ascii_whitespace() {
                found.extend(threads(child.parse()?, true).unwrap_or_default());
            }
        }
    }
    Ok(found)
}
