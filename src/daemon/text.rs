//! The program's own text in memory: what only the start needed is let go.
//!
//! The command line, the configuration and its schema, the first look at the database: a start touches most of the program, the
//! kernel maps it in blocks of 64 KiB around each touch, and nothing unmaps it while there is memory. Let go of once, what serving
//! needs is mapped again from the page cache as it is called, and the rest stays away for good.

use std::num::NonZero;
use std::ops::Range;
use std::path::Path;
use std::ptr::NonNull;
use std::time::Duration;

use nix::sys::mman::{MmapAdvise, madvise};
use tracing::debug;

/// How long a daemon that is ready is still busy with its start: the jobs' first look, connections, the first calls.
const CALM: Duration = Duration::from_millis(500);

/// Unmaps the text of this program when the start is over.
pub(super) async fn let_go_when_calm() {
    tokio::time::sleep(CALM).await;
    let_go();
}

/// What cannot be found out leaves the text as it is: this saves memory and does nothing else.
fn let_go() {
    let (Ok(program), Ok(mappings)) = (std::env::current_exe(), std::fs::read_to_string("/proc/self/smaps"))
    else {
        return;
    };
    let Some(text) = unwritten_text(&mappings, &program) else { return };
    let Some(start) = NonZero::new(text.start) else { return };
    if let Err(problem) = unmap(start, text.len()) {
        debug!(%problem, "the text of the start stays in memory");
    }
}

#[expect(unsafe_code, reason = "std, tokio and nix offer no safe madvise(2)")]
fn unmap(start: NonZero<usize>, length: usize) -> nix::Result<()> {
    // SAFETY: the range is one mapping of this very program's file, executable, not writable and without a private page. All that
    // is dropped is a view of the file, which cannot be written while it is executed: the next access maps the same bytes again.
    unsafe { madvise(NonNull::with_exposed_provenance(start), length, MmapAdvise::MADV_DONTNEED) }
}

/// Where the text of `program` is in `mappings`, written as in proc_pid_smaps(5): the executable mapping of its file, unless a page of
/// it was written (a debugger's breakpoint is such a page, and would be lost).
fn unwritten_text(mappings: &str, program: &Path) -> Option<Range<usize>> {
    let mut lines = mappings.lines();
    let head = lines.find(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(1) == Some("r-xp") && fields.nth(3).is_some_and(|file| Path::new(file) == program)
    })?;
    let written = lines.find_map(|line| line.strip_prefix("Anonymous:"))?;
    if written.trim() != "0 kB" {
        return None;
    }
    let (start, end) = head.split_ascii_whitespace().next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some(address(start)?..address(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPPINGS: &str = "\
5000-6000 r--p 00000000 fe:00 7                          /usr/bin/sidekeep
Anonymous:             0 kB
6000-9000 r-xp 00001000 fe:00 7                          /usr/bin/sidekeep
Rss:                   8 kB
Anonymous:             0 kB
9000-a000 r--p 00004000 fe:00 7                          /usr/bin/sidekeep
Anonymous:             4 kB
";

    #[test]
    fn the_text_is_the_executable_mapping_of_the_program() {
        let found = |mappings: &str, program| unwritten_text(mappings, Path::new(program));
        assert_eq!(found(MAPPINGS, "/usr/bin/sidekeep"), Some(0x6000..0x9000));
        assert_eq!(found(MAPPINGS, "/usr/bin/other"), None);
        assert_eq!(found("", "/usr/bin/sidekeep"), None);
    }

    #[test]
    fn a_text_with_a_breakpoint_is_left_alone() {
        let broken =
            MAPPINGS.replacen("8 kB\nAnonymous:             0 kB", "8 kB\nAnonymous:             4 kB", 1);
        assert_ne!(broken, MAPPINGS);
        assert_eq!(unwritten_text(&broken, Path::new("/usr/bin/sidekeep")), None);
    }

    #[test]
    fn a_program_whose_text_was_let_go_goes_on() {
        let resident = || {
            let program = std::env::current_exe().unwrap();
            let mappings = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let text = unwritten_text(&mappings, &program).unwrap();
            let head =
                mappings.lines().position(|line| line.starts_with(&format!("{:x}-", text.start))).unwrap();
            let rss = mappings.lines().skip(head).find_map(|line| line.strip_prefix("Rss:")).unwrap();
            rss.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()
        };
        let before = resident();
        let_go();
        assert!(resident() < before, "of {before} kB nothing was let go");
    }
}
