//! The device, the hub, and the model of both.

use super::*;

const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Longer than any wait of the hub's own for what ends.
const LINGER: Duration = Duration::from_secs(6);

/// Something that the hub took up, or may have.
#[derive(Clone, Debug)]
struct Entry {
    transmission: u32,
    body: String,
    will: bool,
    /// The hub may have ended the connection before it read this. Then neither did it read what came
    /// behind it on the same connection.
    unsure_of: Option<u32>,
}

/// A message that the device keeps until it is acknowledged.
#[derive(Clone, Copy, Debug)]
struct Kept {
    number: u32,
    packet_id: u16,
}

/// What the live connection is owed.
#[derive(Clone, Copy, Debug)]
struct Owed {
    packet_id: u16,
    /// How many entries have to be durable.
    behind: usize,
    /// The message that the device then forgets.
    number: Option<u32>,
}

/// One connection.
struct Line {
    device: Device,
    number: u32,
    clean: bool,
    will: Option<u32>,
    subscribed: [Option<Qos>; 4],
    owed: std::collections::VecDeque<Owed>,
    /// How many entries there were when it last sent one: its answers wait for its own messages alone.
    sent_through: usize,
    /// How many entries of the connection the hub has had no time to read.
    unread: usize,
}

pub(super) struct World {
    fleet: Fleet,
    line: Option<Line>,
    entries: Vec<Entry>,
    /// So many of them are durable.
    durable: usize,
    /// What the device has not seen acknowledged.
    kept: Vec<Kept>,
    /// The stored session, if there is one.
    stored: Option<[Option<Qos>; 4]>,
    numbers: u32,
    transmissions: u32,
    lines: u32,
    next_id: u16,
    crashes: u64,
}

impl World {
    pub(super) async fn new() -> Self {
        let hub = TestHub::stepped().await;
        let key = hub.device("dev1").await;
        // However often the device falls silent, this holds.
        let token = sas_token("localhost/devices/dev1", &key, expiry(1_000_000));
        Self {
            fleet: Fleet { hub, token },
            line: None,
            entries: Vec::new(),
            durable: 0,
            kept: Vec::new(),
            stored: None,
            numbers: 0,
            transmissions: 0,
            lines: 0,
            // So that ids pass the end of their range now and then.
            next_id: u16::MAX - 3,
            crashes: 0,
        }
    }

    pub(super) async fn take(&mut self, step: Step) {
        match step {
            Step::Publish {
                count,
                qos,
                id,
                seen,
            } => self.publish(count, qos, id, seen).await,
            Step::Resend { seen } => self.resend(seen).await,
            Step::Cut { byte, then } => self.cut(byte, then).await,
            Step::Twin => self.twin().await,
            Step::Connect { clean, will } => self.connect(clean, will).await,
            Step::DisconnectAndTakeOver => {
                if let Some(line) = &mut self.line {
                    line.device.raw(&[0xe0, 0]).await;
                    self.take_over(false, true, true).await;
                }
            }
            Step::Subscribe { filter, qos } => self.subscribe(filter, Some(qos)).await,
            Step::Unsubscribe { filter } => self.subscribe(filter, None).await,
            Step::SubscribeDuring { filter, meanwhile } => {
                self.subscribe_during(filter, meanwhile).await;
            }
            Step::Commit => {
                self.look().await;
                self.commit();
                self.look().await;
            }
            Step::CommitUnheard(then) => {
                self.look().await;
                self.fleet.hub.store.log.withhold(true);
                self.commit();
                // Nothing is left for the log to lose.
                let then = if then == Break::LogLost {
                    Break::Crashed
                } else {
                    then
                };
                self.end(then).await;
                self.fleet.hub.store.log.withhold(false);
                settle_down().await;
            }
            Step::Disconnect => {
                if let Some(mut line) = self.line.take() {
                    line.device.raw(&[0xe0, 0]).await;
                    assert_eq!(next_rest(&mut line.device).await, []);
                    line.device.ended().await;
                }
            }
            Step::End(then) => self.end(then).await,
        }
        self.check_stored().await;
    }

    /// Brings everything to an end: what was not acknowledged is sent again until it is.
    pub(super) async fn finish(&mut self) {
        self.take(Step::Connect {
            clean: false,
            will: false,
        })
        .await;
        self.take(Step::Twin).await;
        self.take(Step::Resend { seen: true }).await;
        self.take(Step::Commit).await;
        assert!(self.kept.is_empty(), "{:?} was not acknowledged", self.kept);
        self.take(Step::Disconnect).await;
    }

    async fn publish(&mut self, count: u8, qos: Qos, id: Id, seen: bool) {
        for _ in 0..count {
            let packet_id = match (id, self.kept.last()) {
                (Id::Reused, Some(kept)) => kept.packet_id,
                _ => self.fresh_id(),
            };
            if self.line.is_none() {
                return;
            }
            self.numbers += 1;
            let number = self.numbers;
            if qos != Qos::AtMostOnce {
                self.kept.push(Kept { number, packet_id });
            }
            self.transmit(number, packet_id, qos, false).await;
        }
        if seen {
            self.look().await;
        }
    }

    async fn resend(&mut self, seen: bool) {
        for Kept { number, packet_id } in self.kept.clone() {
            self.transmit(number, packet_id, Qos::AtLeastOnce, true)
                .await;
        }
        if seen {
            self.look().await;
        }
    }

    async fn transmit(&mut self, number: u32, packet_id: u16, qos: Qos, dup: bool) {
        let transmission = self.transmission();
        let Some(line) = &mut self.line else { return };
        let packet = publish_packet(number, transmission, qos, packet_id, dup);
        line.device.raw(&packet).await;
        line.unread += 1;
        self.entries.push(Entry {
            transmission,
            body: number.to_string(),
            will: false,
            unsure_of: None,
        });
        line.sent_through = self.entries.len();
        if qos != Qos::AtMostOnce {
            line.owed.push_back(Owed {
                packet_id,
                behind: self.entries.len(),
                number: Some(number),
            });
        }
    }

    async fn cut(&mut self, byte: usize, then: Break) {
        self.numbers += 1;
        let number = self.numbers;
        let (transmission, id) = (self.transmission(), self.fresh_id());
        let Some(line) = &mut self.line else { return };
        let packet = publish_packet(number, transmission, Qos::AtLeastOnce, id, false);
        // One byte at least is missing.
        line.device.raw(&packet[..byte % packet.len()]).await;
        settle_down().await;
        line.unread = 0;
        // Nothing that is said after it would be understood as it is meant.
        let then = match then {
            Break::HalfDisconnect | Break::Violation => Break::Closed,
            Break::LogLost => Break::Crashed,
            other => other,
        };
        self.end(then).await;
    }

    async fn twin(&mut self) {
        self.look().await;
        let id = self.fresh_id();
        let Some(line) = &mut self.line else { return };
        let behind = line.sent_through;
        let mut bytes = bytes::BytesMut::new();
        let request = Publish {
            dup: false,
            qos: Qos::AtLeastOnce,
            retain: false,
            topic: "$iothub/twin/GET/?$rid=1",
            packet_id: PacketId::new(id),
            payload: b"",
        };
        request.encode(&mut bytes).unwrap();
        line.device.raw(&bytes).await;
        line.owed.push_back(Owed {
            packet_id: id,
            behind,
            number: None,
        });
        let answered = line.subscribed[TWIN].is_some();
        self.look_for(answered.then_some(Came::TwinAnswer)).await;
    }

    async fn connect(&mut self, clean: bool, will: bool) {
        self.take_over(clean, will, false).await;
        self.look().await;
    }

    /// Connects, in the place of an older connection if there is one. That has heard DISCONNECT or
    /// has not when it is `leaving`.
    async fn take_over(&mut self, clean: bool, will: bool, leaving: bool) {
        let transmission = self.transmission();
        let topic = format!("{EVENTS}?t={transmission}");
        let mut hello = self.fleet.hello();
        hello.clean_session = clean;
        hello.will = will.then_some(Will {
            topic: &topic,
            payload: b"will",
            qos: Qos::AtLeastOnce,
            retain: false,
        });
        let mut device = Device::connect(&self.fleet.hub, &hello);
        let session_present = self.stored.is_some() && !clean;
        assert_eq!(next(&mut device).await, Came::Connack { session_present });
        if let Some(mut old) = self.line.take() {
            // Nothing is said in parting.
            assert_eq!(next_rest(&mut old.device).await, []);
            old.device.task.await.unwrap();
            self.unsure(old.number, old.unread);
            self.leave_will(old.will, leaving.then_some(old.number));
        }
        self.lines += 1;
        let subscribed = self.stored.filter(|_| !clean).unwrap_or_default();
        self.stored = (!clean).then_some(subscribed);
        self.line = Some(Line {
            device,
            number: self.lines,
            clean,
            will: will.then_some(transmission),
            subscribed,
            owed: std::collections::VecDeque::new(),
            sent_through: 0,
            unread: 0,
        });
    }

    async fn subscribe(&mut self, filter: usize, qos: Option<Qos>) {
        self.look().await;
        let Some(line) = &mut self.line else { return };
        line.device
            .raw(&subscription_packet(FILTERS[filter], qos))
            .await;
        self.note_subscription(filter, qos);
        let answer = match qos {
            // QoS 2 is granted as QoS 1.
            Some(qos) => Came::Suback(wire_qos(qos).min(1)),
            None => Came::Unsuback,
        };
        self.look_for(Some(answer)).await;
    }

    fn note_subscription(&mut self, filter: usize, qos: Option<Qos>) {
        let Some(line) = &mut self.line else { return };
        // QoS 2 is granted as QoS 1.
        line.subscribed[filter] = qos.map(|qos| match qos {
            Qos::ExactlyOnce => Qos::AtLeastOnce,
            other => other,
        });
        if !line.clean {
            self.stored = Some(line.subscribed);
        }
    }

    async fn subscribe_during(&mut self, filter: usize, meanwhile: Meanwhile) {
        self.look().await;
        let Some(line) = &self.line else { return };
        // Otherwise there is nothing for the store to do.
        if line.clean || line.subscribed[filter] == Some(Qos::AtLeastOnce) {
            return;
        }
        let documents = Arc::clone(&self.fleet.hub.store.documents);
        if meanwhile == Meanwhile::Lost {
            documents.fail_next();
            self.say_subscribe(filter).await;
            settle_down().await;
            // Nothing can be left to a store that takes nothing.
            self.fleet.hub.clock.advance(LINGER);
            if let Some(mut line) = self.line.take() {
                assert_eq!(next_rest(&mut line.device).await, []);
                line.device.ended().await;
            }
            self.start_anew().await;
            return;
        }
        documents.withhold(true);
        self.say_subscribe(filter).await;
        // What comes behind it waits with it.
        self.publish(2, Qos::AtLeastOnce, Id::Fresh, false).await;
        settle_down().await;
        if let Some(line) = &mut self.line {
            let early = tokio::time::timeout(Duration::ZERO, next(&mut line.device)).await;
            assert!(early.is_err(), "{early:?} before it is durable");
        }
        // The store in memory has carried out what it has not answered.
        self.note_subscription(filter, Some(Qos::AtLeastOnce));
        match meanwhile {
            Meanwhile::Nothing => {
                documents.withhold(false);
                self.look_for(Some(Came::Suback(1))).await;
            }
            Meanwhile::Closed => {
                let Some(mut line) = self.line.take() else {
                    return;
                };
                drop(line.device.stream);
                settle_down().await;
                documents.withhold(false);
                line.device.task.await.unwrap();
                line.unread = 0;
                self.leave_will(line.will, None);
            }
            Meanwhile::TakenOver => {
                self.take_over(false, true, false).await;
                documents.withhold(false);
                self.look().await;
            }
            Meanwhile::Crashed => {
                self.crash().await;
                documents.withhold(false);
            }
            Meanwhile::Lost => {}
        }
    }

    async fn say_subscribe(&mut self, filter: usize) {
        if let Some(line) = &mut self.line {
            let packet = subscription_packet(FILTERS[filter], Some(Qos::AtLeastOnce));
            line.device.raw(&packet).await;
        }
    }

    async fn end(&mut self, then: Break) {
        match then {
            Break::TakenOver => {
                if self.line.is_some() {
                    self.take_over(false, true, false).await;
                }
                return;
            }
            Break::Crashed => return self.crash().await,
            Break::LogLost => return self.lose_log().await,
            _ => {}
        }
        let Some(mut line) = self.line.take() else {
            return;
        };
        let mut last = Vec::new();
        let mut leaves_will = true;
        match then {
            Break::HalfDisconnect => line.device.raw(&[0xe0]).await,
            Break::Silent => {
                settle_down().await;
                line.unread = 0;
                let hub = &self.fleet.hub;
                hub.clock
                    .advance(KEEP_ALIVE * 3 / 2 + Duration::from_secs(1));
                last = next_rest(&mut line.device).await;
            }
            Break::Violation => {
                // PUBREC, which nobody may send here. What came before it counts.
                line.device.raw(&[0x50, 2, 0, 1]).await;
                last = next_rest(&mut line.device).await;
            }
            Break::Disabled => {
                self.set_status(DeviceStatus::Disabled).await;
                last = next_rest(&mut line.device).await;
                self.unsure(line.number, line.unread);
                leaves_will = false;
            }
            Break::Drained => {
                line.device.drain.begin();
                settle_down().await;
                self.unsure(line.number, line.unread);
                // If the log does not answer for so long.
                self.fleet.hub.clock.advance(LINGER);
                last = next_rest(&mut line.device).await;
            }
            _ => {}
        }
        assert_eq!(last, [], "{then:?}");
        line.device.ended().await;
        if leaves_will {
            self.leave_will(line.will, None);
        }
        match then {
            Break::Disabled => self.set_status(DeviceStatus::Enabled).await,
            Break::Drained => self.start_anew().await,
            _ => {}
        }
    }

    async fn set_status(&self, status: DeviceStatus) {
        let mut spec = DeviceSpec::new(target().identity.device);
        spec.status = Some(status);
        let registry = self.fleet.hub.hub.registry();
        registry.update(spec, Precondition::Any).await.unwrap();
        settle_down().await;
    }

    /// Nobody is there any more to publish a will.
    async fn crash(&mut self) {
        if let Some(line) = self.line.take() {
            self.unsure(line.number, line.unread);
            kill(line.device).await;
        }
        self.start_anew().await;
    }

    async fn lose_log(&mut self) {
        self.look().await;
        if self.entries.len() == self.durable {
            return;
        }
        let log = &self.fleet.hub.store.log;
        // Otherwise none of what was unsure is there to be lost, and the failure would wait for what
        // comes later.
        if log.waiting() > 0 {
            log.fail_next();
            log.step();
        }
        self.entries.truncate(self.durable);
        settle_down().await;
        self.fleet.hub.clock.advance(LINGER);
        if let Some(mut line) = self.line.take() {
            if line.sent_through > self.durable {
                assert_eq!(next_rest(&mut line.device).await, []);
                line.device.ended().await;
            } else {
                // Nothing of its own was lost, so that it need not know yet.
                kill(line.device).await;
            }
        }
        self.start_anew().await;
    }

    async fn start_anew(&mut self) {
        self.crashes += 1;
        self.fleet.hub.store.log.set_health(Health::OK);
        let chance = Arc::new(SeededChance::new(7 + self.crashes));
        self.fleet.hub.crash(chance).await;
    }

    /// A connection has ended without DISCONNECT, or perhaps with it: then it is unsure like all else
    /// that may not have been read.
    fn leave_will(&mut self, will: Option<u32>, unsure_of: Option<u32>) {
        self.entries.extend(will.map(|transmission| Entry {
            transmission,
            body: "will".to_owned(),
            will: true,
            unsure_of,
        }));
    }

    /// The last entries of a connection may not have been read before it ended.
    fn unsure(&mut self, line: u32, count: usize) {
        let from = self.entries.len() - count;
        for entry in &mut self.entries[from..] {
            entry.unsure_of = Some(line);
        }
    }

    fn commit(&mut self) {
        while self.fleet.hub.store.log.step() > 0 {}
        self.durable = self.entries.len();
    }

    /// Takes everything that comes and compares it with what must come.
    async fn look(&mut self) {
        self.look_for(None).await;
    }

    /// The same, with an answer that is no acknowledgement of a publish.
    async fn look_for(&mut self, mut answer: Option<Came>) {
        let Some(line) = &mut self.line else { return };
        let mut acknowledged = Vec::new();
        for came in next_all(&mut line.device).await {
            match came {
                Came::Puback(id) => acknowledged.push(id),
                other => assert_eq!(Some(other), answer.take()),
            }
        }
        assert_eq!(answer, None, "it must come");
        line.unread = 0;
        let mut expected = Vec::new();
        while let Some(owed) = line.owed.pop_front_if(|owed| owed.behind <= self.durable) {
            expected.push(owed.packet_id);
            self.kept.retain(|kept| Some(kept.number) != owed.number);
        }
        assert_eq!(acknowledged, expected);
    }

    /// Compares what is stored with what was taken up.
    async fn check_stored(&mut self) {
        let hub = &self.fleet.hub.hub;
        let identity = target().identity;
        let principal = hub
            .access()
            .authenticate_device(&identity, "localhost", &self.fleet.token);
        let principal = principal.await.unwrap();
        let stored = hub.subscriptions().load(&principal).await.unwrap();
        assert_eq!(stored, self.stored.map(features));

        let mut events = self.fleet.hub.events("dev1").await.into_iter().peekable();
        let mut unread_since = None;
        let mut taken = Vec::new();
        for (at, entry) in self.entries.iter().enumerate() {
            let transmission = Some(entry.transmission.to_string());
            let here = |event: &crate::testing::SeenEvent| {
                let t = ("t".to_owned(), transmission.clone());
                let mark = ("iothub-MessageType".to_owned(), Some("Will".to_owned()));
                let is_will = event.properties.contains(&mark);
                event.properties.contains(&t) && event.body == entry.body && is_will == entry.will
            };
            let is_durable = at < self.durable;
            let came = events.next_if(|event| is_durable && here(event)).is_some();
            if !is_durable || came {
                let out_of_line =
                    came && entry.unsure_of.is_some() && entry.unsure_of == unread_since;
                assert!(
                    !out_of_line || entry.will,
                    "{entry:?} was read and not what came before it"
                );
                taken.push(entry.clone());
                if came {
                    // What is stored stays.
                    taken.last_mut().unwrap().unsure_of = None;
                }
            } else {
                assert!(entry.unsure_of.is_some(), "{entry:?} is not stored");
                unread_since = entry.unsure_of;
            }
        }
        assert_eq!(events.next(), None, "nobody left that to be stored");
        let lost = self.entries.len() - taken.len();
        self.durable -= lost;
        if let Some(line) = &mut self.line {
            line.sent_through = line.sent_through.saturating_sub(lost);
            for owed in &mut line.owed {
                owed.behind = owed.behind.saturating_sub(lost);
            }
        }
        self.entries = taken;
    }

    fn transmission(&mut self) -> u32 {
        self.transmissions += 1;
        self.transmissions
    }

    fn fresh_id(&mut self) -> u16 {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.next_id
    }
}

fn features([device_bound, twin, desired, methods]: [Option<Qos>; 4]) -> Features {
    let granted = |qos: Option<Qos>| {
        qos.map(|qos| match qos {
            Qos::AtMostOnce => QoS::AtMostOnce,
            Qos::AtLeastOnce | Qos::ExactlyOnce => QoS::AtLeastOnce,
        })
    };
    Features {
        device_bound: granted(device_bound),
        twin_responses: granted(twin),
        desired_properties: granted(desired),
        methods: granted(methods),
        inputs: None,
    }
}
