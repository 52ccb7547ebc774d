use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig,
    Mount, MountType, MountVolumeOptions, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};

use super::{DEPLOYMENT_LABEL, DockerOptions, HANDS, SANDBOX_LABEL};
use crate::Spec;

/// What PID 1 starts with. What it keeps, and everything inside can have, is the least with which
/// apt, pip and npm install and services can be run under users of their own.
const CAPABILITIES: [&str; 11] = [
    // dpkg and tar give files their owners and modes.
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    // Packages that carry file capabilities (ping) unpack. They raise nothing: the bounding set
    // is this list.
    "SETFCAP",
    // apt fetches as its own user, and `su postgres` must work; the hands end what runs as others.
    "SETGID",
    "SETUID",
    "KILL",
    // The last three are PID 1's alone. It gives them up, also for all that it starts, before
    // anything else runs.
    // Sets up the redirect of outgoing connections in the sandbox's own network namespace.
    "NET_ADMIN",
    // Listens on port 53 where there can be no redirect.
    "NET_BIND_SERVICE",
    // Takes these three out of the bounding set.
    "SETPCAP",
];
/// Shared memory: Docker's own 64 MiB is too small for browsers. It counts against the memory limit.
const SHM_BYTES: i64 = 512 << 20;

/// What the plan of a container depends on besides its [`Spec`].
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) options: &'a DockerOptions,
    /// CPUs of the daemon's host: asking for more is an error there.
    pub(super) cpus: u32,
    pub(super) hands_volume: &'a str,
    /// Whether to ask for a disk quota.
    pub(super) quota: bool,
}

/// The whole definition of a sandbox's container: everything it may and may not do is decided here.
///
/// What is left at Docker's default on purpose: the seccomp and AppArmor profiles, and the masked
/// and read-only paths of /proc and /sys. No host path, device or socket is ever mounted.
pub(super) fn container(spec: &Spec, facts: &Facts<'_>) -> ContainerCreateBody {
    let limits = &facts.options.limits;
    let memory = spec.memory_bytes.or(limits.memory_bytes).map(signed);
    let disk = spec.disk_bytes.or(limits.disk_bytes).map(signed);
    let cpus = spec.cpus.or(limits.cpus);
    let pids = spec.pids.or(limits.pids);
    // A core dump would be a copy of secrets on the disk.
    let mut ulimits = vec![ulimit("core", 0)];
    // Only what lowers a limit may be set: a daemon in a container or VM may not raise its own.
    ulimits.extend(disk.map(|bytes| ulimit("fsize", bytes)));
    // Where there is a quota, what is seen from inside is the quota's rest and not the machine's.
    let quota = disk.filter(|_| facts.quota);
    let mut command = vec!["serve".to_owned()];
    if quota.is_none() && facts.options.low_water_bytes > 0 {
        let bytes = facts.options.low_water_bytes.to_string();
        command.extend(["--low-water".to_owned(), bytes]);
    }
    let host = HostConfig {
        // No interface but loopback: the only way out is the stream to the server.
        network_mode: Some("none".to_owned()),
        // The hands' own resolver, the only one there is.
        dns: Some(vec!["127.0.0.1".to_owned()]),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(CAPABILITIES.map(str::to_owned).to_vec()),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        privileged: Some(false),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        runtime: facts.options.runtime.clone(),
        // The hands reap, so they must be PID 1 themselves.
        init: Some(false),
        memory,
        // Memory and swap together: no swap.
        memory_swap: memory,
        nano_cpus: cpus.map(|wanted| nano_cpus(wanted, facts.cpus)),
        // 0 would mean no limit, too.
        pids_limit: pids.map(|most| i64::from(most.max(1))),
        shm_size: Some(memory.map_or(SHM_BYTES, |memory| memory.min(SHM_BYTES))),
        ulimits: Some(ulimits),
        storage_opt: quota.map(|bytes| HashMap::from([("size".to_owned(), bytes.to_string())])),
        mounts: Some(vec![hands_mount(facts.hands_volume, true)]),
        // Root inside can write to PID 1's standard streams, and the log is on the host's disk.
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), "256k".to_owned()),
                ("max-file".to_owned(), "1".to_owned()),
            ])),
        }),
        // A restart is a decision of the engine, which must tell its session.
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        auto_remove: Some(false),
        ..Default::default()
    };
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        // Whatever the image says about its own program, user and health check is not asked for.
        entrypoint: Some(vec![HANDS.to_owned()]),
        cmd: Some(command),
        user: Some("0:0".to_owned()),
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..Default::default()
        }),
        stop_signal: Some("SIGTERM".to_owned()),
        // Created by the daemon where the image has none.
        working_dir: Some("/workspace".to_owned()),
        hostname: Some("sandbox".to_owned()),
        env: Some(
            spec.env
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
        ),
        tty: Some(false),
        open_stdin: Some(false),
        attach_stdin: Some(false),
        attach_stdout: Some(false),
        attach_stderr: Some(false),
        labels: Some(HashMap::from([
            (
                DEPLOYMENT_LABEL.to_owned(),
                facts.options.deployment.clone(),
            ),
            (SANDBOX_LABEL.to_owned(), spec.id.to_string()),
        ])),
        host_config: Some(host),
        ..Default::default()
    }
}

/// The volume with the hands, at the place where the entry point expects them.
pub(super) fn hands_mount(volume: &str, read_only: bool) -> Mount {
    Mount {
        target: Some("/selfsame".to_owned()),
        source: Some(volume.to_owned()),
        typ: Some(MountType::VOLUME),
        read_only: Some(read_only),
        // An image that has files of its own at this place must not fill the volume with them.
        volume_options: Some(MountVolumeOptions {
            no_copy: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn ulimit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(value),
        hard: Some(value),
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Billionths of a CPU, within what the host has; 0 would mean no limit.
fn nano_cpus(wanted: f64, available: u32) -> i64 {
    let all = f64::from(available);
    let cpus = if wanted.is_finite() {
        wanted.clamp(0.01, all)
    } else {
        all
    };
    (cpus * 1e9) as i64
}

#[cfg(test)]
mod tests {
    use selfsame_types::SandboxId;

    use super::*;
    use crate::Limits;

    fn plan(spec: &Spec, quota: bool) -> ContainerCreateBody {
        let options = DockerOptions {
            host: None,
            deployment: "test".to_owned(),
            hands: "hands".into(),
            runtime: Some("runsc".to_owned()),
            pull: false,
            limits: Limits::default(),
            low_water_bytes: 1000,
            start_concurrency: 4,
        };
        let facts = Facts {
            options: &options,
            cpus: 2,
            hands_volume: "volume",
            quota,
        };
        container(spec, &facts)
    }

    #[test]
    fn nothing_of_the_host_is_reachable() {
        let body = plan(&Spec::new(SandboxId::new(), "image"), false);
        let host = body.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(host.dns, Some(vec!["127.0.0.1".to_owned()]));
        assert_eq!(host.binds, None);
        assert_eq!(host.devices, None);
        assert_eq!(host.runtime.as_deref(), Some("runsc"));
        let mounts = host.mounts.unwrap();
        assert!(
            mounts
                .iter()
                .all(|m| m.typ == Some(MountType::VOLUME) && m.read_only == Some(true)),
            "{mounts:?}"
        );
        for forbidden in ["SYS_PTRACE", "SYS_ADMIN", "NET_RAW", "MKNOD"] {
            assert!(
                !host
                    .cap_add
                    .as_ref()
                    .unwrap()
                    .iter()
                    .any(|c| c == forbidden)
            );
        }
    }

    #[test]
    fn limits_come_from_the_spec_and_otherwise_from_the_options() {
        let mut spec = Spec::new(SandboxId::new(), "image");
        let body = plan(&spec, false);
        assert_eq!(body.cmd.unwrap(), ["serve", "--low-water", "1000"]);
        let host = body.host_config.unwrap();
        assert_eq!(host.memory, Some(8 << 30));
        assert_eq!(host.memory_swap, host.memory);
        assert_eq!(host.pids_limit, Some(1024));
        assert_eq!(host.storage_opt, None);
        spec.memory_bytes = Some(64 << 20);
        spec.disk_bytes = Some(1000);
        spec.cpus = Some(64.0);
        spec.pids = Some(7);
        let body = plan(&spec, true);
        assert_eq!(body.cmd.unwrap(), ["serve"]);
        let host = body.host_config.unwrap();
        assert_eq!(host.memory, Some(64 << 20));
        assert_eq!(host.shm_size, Some(64 << 20));
        assert_eq!(host.nano_cpus, Some(2_000_000_000));
        assert_eq!(host.pids_limit, Some(7));
        assert_eq!(host.storage_opt.unwrap()["size"], "1000");
    }

    #[test]
    fn odd_cpu_figures_never_mean_no_limit() {
        for wanted in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            let nano = nano_cpus(wanted, 2);
            assert!(
                (10_000_000..=2_000_000_000).contains(&nano),
                "{wanted}: {nano}"
            );
        }
    }
}
