//! What a run is made of.

use std::ops::Range;
use std::time::Duration;

use crate::store::DiskSpeed;

/// One kind of run. Times are simulated ones.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// Devices that publish and take commands.
    pub devices: u64,
    /// Telemetry that each device sends.
    pub messages: u64,
    /// How long a device waits between two messages.
    pub publish_every: Range<Duration>,
    /// Back ends that send commands and take feedback.
    pub services: u64,
    /// Commands that each of them sends.
    pub commands: u64,
    /// How long a back end waits between two commands.
    pub command_every: Range<Duration>,
    /// The mean life of a link, if links are cut.
    pub cut_every: Option<Duration>,
    /// How long the hub runs between two falls, if it falls.
    pub fall_every: Option<Range<Duration>>,
    /// Whether a fall may take the machine's power with it, and with that what was not synced.
    pub power_loss: bool,
    /// How long the disk takes.
    pub disk: DiskSpeed,
    /// How long the clock of the hub's machine goes before somebody sets it, wrongly, if anybody does.
    pub clock_set_every: Option<Range<Duration>>,
    /// How often a sync fails, of 100 processes of the hub.
    pub failing_syncs_percent: u64,
}

impl Scenario {
    /// All of them.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let seconds = Duration::from_secs;
        let millis = Duration::from_millis;
        let calm = Self {
            name: "calm",
            devices: 3,
            messages: 150,
            publish_every: millis(0)..millis(200),
            services: 2,
            commands: 40,
            command_every: millis(0)..millis(700),
            cut_every: None,
            fall_every: None,
            power_loss: false,
            disk: DiskSpeed::Fast,
            clock_set_every: None,
            failing_syncs_percent: 0,
        };
        let cuts = Self {
            name: "cuts",
            cut_every: Some(seconds(3)),
            ..calm.clone()
        };
        let restarts = Self {
            name: "restarts",
            fall_every: Some(millis(500)..seconds(8)),
            power_loss: true,
            ..calm.clone()
        };
        let slow_disk = Self {
            name: "slow-disk",
            disk: DiskSpeed::Slow,
            ..calm.clone()
        };
        let failing_syncs = Self {
            name: "failing-syncs",
            failing_syncs_percent: 90,
            fall_every: Some(seconds(2)..seconds(20)),
            ..calm.clone()
        };
        let full = Self {
            name: "full",
            devices: 5,
            cut_every: Some(seconds(5)),
            fall_every: Some(millis(500)..seconds(15)),
            power_loss: true,
            failing_syncs_percent: 20,
            disk: DiskSpeed::Slow,
            ..calm.clone()
        };
        let clock = Self {
            name: "clock",
            clock_set_every: Some(millis(500)..seconds(10)),
            cut_every: Some(seconds(10)),
            fall_every: Some(seconds(2)..seconds(20)),
            power_loss: true,
            ..calm.clone()
        };
        let thousand = Self {
            name: "thousand",
            devices: 1000,
            messages: 10,
            publish_every: millis(0)..seconds(6),
            services: 2,
            commands: 500,
            command_every: millis(0)..millis(100),
            cut_every: Some(seconds(5)),
            ..calm.clone()
        };
        vec![
            calm,
            cuts,
            restarts,
            slow_disk,
            failing_syncs,
            full,
            clock,
            thousand,
        ]
    }

    /// Whether one process of the hub lives through the whole run, and its store with it.
    pub(crate) fn is_steady(&self) -> bool {
        self.fall_every.is_none() && self.failing_syncs_percent == 0
    }

    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|found| found.name == name)
    }
}
