//! Connections that break as chance has it.

use std::collections::{BTreeMap, VecDeque};

use fieldpost_hub::clock::Chance;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// Every connection begins with the same packet id, so that ids meet again all the time.
struct SamePacketIds(SeededChance);

/// The ids begin anew within a few messages.
const FIRST_PACKET_ID: u16 = u16::MAX - 2;

/// A message that was abandoned as often as this is a dead letter (Azure IoT Hub's default).
const DELIVERIES_MAX: u32 = 10;

impl Chance for SamePacketIds {
    fn fill(&self, out: &mut [u8]) {
        match out {
            [first, second] => [*first, *second] = FIRST_PACKET_ID.to_ne_bytes(),
            _ => self.0.fill(out),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send,
    Connect {
        clean: bool,
    },
    Subscribe {
        qos: Qos,
    },
    Unsubscribe,
    Ack(Index),
    /// The PUBACK of something that an earlier connection had in flight.
    StaleAck(Index),
    /// The PUBACK is on its way when a newer connection comes.
    AckAndTakeOver(Index),
    Judge {
        which: Index,
        reject: bool,
        by_message: bool,
        /// The PUBACK follows at once, as SDKs send it.
        then_ack: bool,
    },
    Break,
    Disconnect,
    Withhold(bool),
    /// The hub crashes.
    Restart,
    /// The device acknowledges, the store loses that, and the hub crashes.
    LoseAck(Index),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    prop_oneof![
        6 => Just(Step::Send),
        5 => any::<bool>().prop_map(|clean| Step::Connect { clean }),
        3 => Just(Step::Connect { clean: false }),
        4 => Just(Step::Subscribe { qos: Qos::AtLeastOnce }),
        1 => Just(Step::Subscribe { qos: Qos::AtMostOnce }),
        1 => Just(Step::Unsubscribe),
        5 => index().prop_map(Step::Ack),
        3 => index().prop_map(Step::StaleAck),
        2 => index().prop_map(Step::AckAndTakeOver),
        5 => (index(), any::<[bool; 3]>()).prop_map(|(which, [reject, by_message, then_ack])| {
            Step::Judge { which, reject, by_message, then_ack }
        }),
        3 => Just(Step::Break),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Withhold(true)),
        2 => Just(Step::Withhold(false)),
        1 => Just(Step::Restart),
        1 => index().prop_map(Step::LoseAck),
    ]
}

/// What the model knows of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It must come, again and again, until the device says something.
    Waiting,
    /// The device has said something, and nobody knows whether the hub has heard it.
    Unsure,
    /// It must never come again.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InFlight {
    packet_id: PacketId,
    number: u32,
    /// Rejected or abandoned; its PUBACK means nothing.
    judged: bool,
}

/// A device, its hub, and what must be true of both.
struct World {
    fleet: Fleet,
    device: Option<Device>,
    clean: bool,
    messages: BTreeMap<u32, State>,
    abandoned: BTreeMap<u32, u32>,
    /// Deliveries of the live connection without a PUBACK, oldest first.
    in_flight: Vec<InFlight>,
    /// What the session of the live connection wants.
    subscribed: Option<Qos>,
    /// The stored session, if there is one.
    stored: Option<Option<Qos>>,
    /// The live connection has been subscribed, and takes nothing over from older ones any more.
    attached: bool,
    /// What was in flight when the last connection of the session ended.
    remembered: VecDeque<InFlight>,
    /// Ids that no new message of the live connection may have.
    reserved: Vec<PacketId>,
    old_ids: Vec<PacketId>,
    withheld: bool,
    crashes: u64,
    verdicts_owed: usize,
}

impl World {
    async fn new() -> Self {
        let chance = SamePacketIds(SeededChance::new(7));
        let fleet = Fleet::of(TestHub::automatic_with(Arc::new(chance)).await).await;
        Self {
            fleet,
            device: None,
            clean: false,
            messages: BTreeMap::new(),
            abandoned: BTreeMap::new(),
            in_flight: Vec::new(),
            subscribed: None,
            stored: None,
            attached: false,
            remembered: VecDeque::new(),
            reserved: Vec::new(),
            old_ids: Vec::new(),
            withheld: false,
            crashes: 0,
            verdicts_owed: 0,
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Send => {
                // The store's answer would have to be waited for; and a full window is another test.
                let waiting = self
                    .messages
                    .values()
                    .filter(|s| **s != State::Gone)
                    .count();
                if !self.withheld && waiting < 8 {
                    let number = self
                        .messages
                        .last_key_value()
                        .map_or(1, |(last, _)| last + 1);
                    let mut sender = self.fleet.hub.hub.c2d().sender("service");
                    send(&mut sender, number).await;
                    self.messages.insert(number, State::Waiting);
                }
            }
            Step::Connect { clean } => self.connect(clean).await,
            Step::Subscribe { qos } => self.subscribe(qos).await,
            Step::Unsubscribe => self.unsubscribe().await,
            Step::Ack(which) => {
                if let Some(sent) = self.pick(&which, true) {
                    self.ack(sent).await;
                }
            }
            Step::StaleAck(which) => {
                let in_flight = |id: &PacketId| self.in_flight.iter().any(|s| s.packet_id == *id);
                let stale: Vec<_> = self.old_ids.iter().filter(|id| !in_flight(id)).collect();
                if let Some(device) = &mut self.device
                    && !stale.is_empty()
                {
                    device.raw(&puback(**which.get(&stale))).await;
                }
            }
            Step::AckAndTakeOver(which) => {
                if let Some(sent) = self.pick(&which, false)
                    && let Some(device) = &mut self.device
                {
                    device.raw(&puback(sent.packet_id)).await;
                    self.messages.insert(sent.number, State::Unsure);
                    self.connect(false).await;
                }
            }
            Step::Judge {
                which,
                reject,
                by_message,
                then_ack,
            } => {
                if let Some(judged) = self.judge(&which, reject, by_message).await
                    && then_ack
                {
                    // What was abandoned has come again before.
                    self.look().await;
                    self.ack(judged).await;
                }
            }
            Step::Break => self.end(false).await,
            Step::Disconnect => self.end(true).await,
            Step::Withhold(withhold) => {
                self.withheld = withhold;
                self.fleet.hub.store.queues.withhold(withhold);
            }
            Step::Restart => self.crash().await,
            Step::LoseAck(which) => {
                if !self.withheld
                    && let Some(sent) = self.pick(&which, false)
                    && let Some(device) = &mut self.device
                {
                    self.fleet.hub.store.queues.fail_next();
                    device.raw(&puback(sent.packet_id)).await;
                    settle_down().await;
                    self.crash().await;
                }
            }
        }
        self.look().await;
    }

    /// One of the deliveries in flight; `None` without any.
    fn pick(&self, which: &Index, with_judged: bool) -> Option<InFlight> {
        let of_interest = |sent: &&InFlight| with_judged || !sent.judged;
        let candidates: Vec<_> = self.in_flight.iter().filter(of_interest).collect();
        (!candidates.is_empty()).then(|| **which.get(&candidates))
    }

    async fn ack(&mut self, sent: InFlight) {
        if let Some(device) = &mut self.device {
            device.raw(&puback(sent.packet_id)).await;
            self.in_flight.retain(|other| *other != sent);
            if !sent.judged {
                self.messages.insert(sent.number, State::Gone);
            }
        }
    }

    async fn judge(&mut self, which: &Index, reject: bool, by_message: bool) -> Option<InFlight> {
        // An abandoned message comes back when the store has noted it.
        if self.withheld && !reject {
            return None;
        }
        let mut sent = self.pick(which, false)?;
        let device = self.device.as_mut()?;
        let word = if reject { "reject" } else { "abandon" };
        let mut name = format!("$pid={}", sent.packet_id);
        if by_message {
            let id = message_id(sent.number);
            name = format!("$mid={id}");
            // It is about the oldest of that name.
            let is_named = |other: &&InFlight| !other.judged && message_id(other.number) == id;
            sent = *self.in_flight.iter().find(is_named)?;
        }
        device.publish(&format!("$fieldpost/c2d/{word}/?{name}"), b"why not");
        self.verdicts_owed += 1;
        for other in &mut self.in_flight {
            other.judged |= *other == sent;
        }
        let abandoned = self.abandoned.entry(sent.number).or_default();
        *abandoned += u32::from(!reject);
        if reject || *abandoned == DELIVERIES_MAX {
            self.messages.insert(sent.number, State::Gone);
        }
        Some(InFlight {
            judged: true,
            ..sent
        })
    }

    async fn connect(&mut self, clean: bool) {
        let mut hello = self.fleet.hello();
        hello.clean_session = clean;
        let mut device = Device::connect(&self.fleet.hub, &hello);
        let session_present = self.stored.is_some() && !clean;
        let heard = hear(&mut device).await;
        assert_eq!(heard, Heard::Connack { session_present });
        if let Some(old) = &mut self.device {
            // Nothing is said in parting; what was on its way may still come.
            let last = hear_rest(old).await;
            assert!(last.iter().all(|heard| *heard == Heard::Puback), "{last:?}");
        }
        self.forget_connection();
        self.device = Some(device);
        self.clean = clean;
        self.subscribed = self.stored.flatten().filter(|_| !clean);
        if clean {
            self.stored = None;
        } else {
            self.stored = Some(self.subscribed);
        }
        if !session_present {
            self.remembered.clear();
        }
        self.attach();
    }

    /// The connection takes up what the session's last one had in flight.
    fn attach(&mut self) {
        if self.subscribed.is_some() && !self.attached {
            self.attached = true;
            let messages = &self.messages;
            let is_sure = |sent: &&InFlight| messages[&sent.number] == State::Waiting;
            let surely = self.remembered.iter().filter(is_sure);
            self.reserved = surely.map(|sent| sent.packet_id).collect();
        }
    }

    async fn subscribe(&mut self, qos: Qos) {
        let Some(device) = &mut self.device else {
            return;
        };
        device.subscribe(&[(FILTER, qos)]);
        self.subscribed = Some(qos);
        self.stored = self.stored.map(|_| Some(qos));
        self.attach();
    }

    async fn unsubscribe(&mut self) {
        let Some(device) = &mut self.device else {
            return;
        };
        let now = device.clock.monotonic();
        device.client.unsubscribe(&[FILTER], now).unwrap();
        self.subscribed = None;
        self.stored = self.stored.map(|_| None);
    }

    async fn end(&mut self, in_good_order: bool) {
        let Some(mut device) = self.device.take() else {
            return;
        };
        if in_good_order {
            device.client.disconnect();
            device.flush().await;
            let last = hear_rest(&mut device).await;
            assert!(last.iter().all(|heard| *heard == Heard::Puback), "{last:?}");
        }
        device.ended().await;
        self.forget_connection();
    }

    async fn crash(&mut self) {
        if let Some(device) = self.device.take() {
            kill(device).await;
        }
        self.forget_connection();
        self.remembered.clear();
        self.crashes += 1;
        let chance = SamePacketIds(SeededChance::new(7 + self.crashes));
        self.fleet.hub.store.log.set_health(Health::OK);
        self.fleet.hub.crash(Arc::new(chance)).await;
        self.fleet.hub.store.queues.withhold(false);
        self.withheld = false;
    }

    /// The live connection is over.
    fn forget_connection(&mut self) {
        self.old_ids
            .extend(self.in_flight.iter().map(|sent| sent.packet_id));
        self.old_ids.extend(&self.reserved);
        self.old_ids.sort_unstable();
        self.old_ids.dedup();
        if self.attached {
            // An abandoned message that did not come again yet is still known by its old id: the
            // device has not acknowledged that.
            let mut remembered: VecDeque<InFlight> = VecDeque::new();
            for sent in self.in_flight.iter().filter(|_| !self.clean) {
                remembered.retain(|other| other.number != sent.number);
                remembered.push_back(*sent);
            }
            // With a store that does not answer, the hub may have got to nothing yet.
            remembered.append(&mut self.remembered);
            self.remembered = remembered;
        }
        self.in_flight.clear();
        self.reserved.clear();
        self.attached = false;
        self.verdicts_owed = 0;
    }

    /// Takes everything that comes and compares it with what must come.
    async fn look(&mut self) {
        let Some(device) = &mut self.device else {
            return;
        };
        for heard in hear_all(device).await {
            match heard {
                Heard::Command(command) => self.arrived(command),
                Heard::Puback => {
                    assert!(self.verdicts_owed > 0, "nothing else is acknowledged");
                    self.verdicts_owed -= 1;
                }
                Heard::Suback | Heard::Unsuback => {}
                other => panic!("{other:?}"),
            }
        }
        // The hub stops when the store does not answer for a while.
        if self.withheld {
            return;
        }
        assert_eq!(self.verdicts_owed, 0);
        if self.subscribed.is_none() {
            return;
        }
        // All that was to come again has come before anything else, and all that waits is here.
        for left in std::mem::take(&mut self.remembered) {
            self.passed_over(left.number);
        }
        let in_flight = &self.in_flight;
        for (number, state) in &mut self.messages {
            let is_here = |sent: &InFlight| sent.number == *number && !sent.judged;
            match state {
                State::Waiting => assert!(in_flight.iter().any(is_here), "{number} must come"),
                State::Unsure => *state = State::Gone,
                State::Gone => {}
            }
        }
    }

    fn arrived(&mut self, command: Command) {
        let number = command.number;
        let state = self.messages[&number];
        assert_ne!(state, State::Gone, "{number} is over and done with");
        let is_here = |sent: &InFlight| sent.number == number && !sent.judged;
        assert!(
            !self.in_flight.iter().any(is_here),
            "{number} is here already"
        );
        assert!(self.subscribed.is_some(), "nobody asked for {number}");
        let Some(packet_id) = command.packet_id else {
            assert_eq!(self.subscribed, Some(Qos::AtMostOnce));
            assert!(!command.dup);
            // It was written, and that is all there is.
            self.messages.insert(number, State::Gone);
            self.remembered.retain(|sent| sent.number != number);
            return;
        };
        assert_eq!(self.subscribed, Some(Qos::AtLeastOnce));
        self.messages.insert(number, State::Waiting);
        if command.dup {
            let again = loop {
                let again = self
                    .remembered
                    .pop_front()
                    .expect("only what was in flight");
                if again.number == number {
                    break again;
                }
                self.passed_over(again.number);
            };
            assert_eq!(packet_id, again.packet_id, "{number} has a packet id");
        } else {
            for left in std::mem::take(&mut self.remembered) {
                assert_ne!(left.number, number, "it was in flight and comes again");
                self.passed_over(left.number);
            }
            assert!(!self.reserved.contains(&packet_id), "{packet_id} is taken");
        }
        let in_use = |sent: &InFlight| sent.packet_id == packet_id;
        assert!(!self.in_flight.iter().any(in_use), "{packet_id} is in use");
        self.in_flight.push(InFlight {
            packet_id,
            number,
            judged: false,
        });
    }

    /// A message that was to come again, and did not.
    fn passed_over(&mut self, number: u32) {
        assert_ne!(self.messages[&number], State::Waiting, "{number} is lost");
        if self.messages[&number] == State::Unsure {
            self.messages.insert(number, State::Gone);
        }
    }

    /// Brings everything to an end: what waits comes, and is acknowledged.
    async fn finish(&mut self) {
        self.take(Step::Withhold(false)).await;
        self.take(Step::Connect { clean: false }).await;
        let qos = Qos::AtLeastOnce;
        self.take(Step::Subscribe { qos }).await;
        while let Some(sent) = self.in_flight.first().copied() {
            self.ack(sent).await;
            self.look().await;
        }
        assert!(self.messages.values().all(|state| *state == State::Gone));
        assert_eq!(waiting(&self.fleet).await, 0);
        self.take(Step::Connect { clean: false }).await;
        // Words about messages are not messages.
        assert_eq!(self.fleet.hub.events("dev1").await, []);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_course_of_connections_follows_the_model(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in steps {
                world.take(step).await;
            }
            world.finish().await;
        });
    }
}
