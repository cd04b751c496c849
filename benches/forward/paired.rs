//! Two things measured in turns, so that what else the machine does meets both.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::libc;

/// A comparison of two rates: the ratio of each round's, and how they lie.
pub struct Ratios {
    /// Of the first thing's rates and of the second's.
    pub medians: (f64, f64),
    /// Lower quartile, median and upper quartile.
    pub quartiles: [f64; 3],
}

/// Measures `a` and `b` in rounds of A B B A, so that what drifts within a round meets both alike. Never fewer than
/// `rounds.0` rounds, never more than `rounds.1`, and between them until `time` is over.
pub fn in_turns(
    rounds: (usize, usize),
    time: Duration,
    a: &dyn Fn() -> Result<f64>,
    b: &dyn Fn() -> Result<f64>,
) -> Result<Ratios> {
    let begin = Instant::now();
    let (mut of_a, mut of_b, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    while ratios.len() < rounds.0 || (ratios.len() < rounds.1 && begin.elapsed() < time) {
        let round = [a()?, b()?, b()?, a()?];
        ratios.push((round[0] + round[3]) / (round[1] + round[2]));
        of_a.extend([round[0], round[3]]);
        of_b.extend([round[1], round[2]]);
    }
    let medians = (quantile(&mut of_a, 0.5), quantile(&mut of_b, 0.5));
    Ok(Ratios { medians, quartiles: [0.25, 0.5, 0.75].map(|part| quantile(&mut ratios, part)) })
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    // The nearest one: there are some dozens of them.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the last index")]
    let place = (last as f64 * part).round() as usize;
    values[place]
}

/// While this lives, other processes of the machine wait for this one and its children: the share of a busy processor
/// that they get is not what is to be measured.
pub struct First(());

impl First {
    pub fn of_all() -> Result<Self> {
        nice(-20)?;
        Ok(Self(()))
    }
}

impl Drop for First {
    fn drop(&mut self) {
        let _ = nice(0);
    }
}

fn nice(value: i32) -> std::io::Result<()> {
    // Where the kernel groups processes by their session, `nice` counts among those of the session alone (sched(7)).
    match fs::write("/proc/self/autogroup", value.to_string()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // SAFETY: a plain system call about this process.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
