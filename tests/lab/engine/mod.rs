//! Real engines, each with its whole state inside the lab.

pub mod containerd;
pub mod docker;
pub mod oci;
pub mod podman;

use crate::run::{Job, Out};

/// A running container, whatever engine runs it.
pub trait Container {
    /// Runs a program in it to its end.
    fn exec(&self, args: &[&str]) -> Out;
    /// Starts a program in it.
    fn spawn(&self, args: &[&str]) -> Job;
    /// Ends it but keeps it, as an engine's `stop` does.
    fn stop(&mut self);
    /// Ends and removes it, in good order: poststop runs.
    fn remove(&mut self);

    /// One question by the probe.
    #[track_caller]
    fn probe(&self, args: &[&str]) -> Out {
        self.exec(&[&[crate::rootfs::PROBE], args].concat())
    }

    /// Ends a flow of [`Container::probing`] before its time. Ending the engine's `exec` alone would leave the program
    /// inside running.
    #[track_caller]
    fn end(&self, job: Job) {
        let pid = job.figure("pid");
        assert!(pid > 0, "the flow has not said its pid yet");
        let out = self.exec(&["/bin/kill", "-9", &pid.to_string()]);
        assert!(out.code == 0, "kill in the container: {out:?}");
        job.finish(std::time::Duration::from_secs(5));
    }

    /// The probe in the background; it must be one of the lasting kinds, `udp-flood` or `tcp-hold`.
    #[track_caller]
    fn probing(&self, args: &[&str]) -> Job {
        self.spawn(&[&[crate::rootfs::PROBE], args].concat())
    }
}

/// A container that lives more than once under one id. One of a pod does not: a kubelet makes another.
pub trait Restartable: Container {
    /// Ends it by SIGKILL but keeps it, as an engine's `kill` does.
    fn kill(&mut self);
    /// Starts it again after [`Container::stop`] or [`Restartable::kill`].
    fn start(&mut self);
    /// Ends it and starts it again at once.
    fn restart(&mut self);
}
