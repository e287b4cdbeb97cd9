//! Clients that cannot run here, as their frames on the wire: each test says what its client is
//! documented to send, field by field, without an engine that would add to it or know better.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use fieldpost_amqp::Symbol;
use fieldpost_amqp::frame::{
    AMQP_HEADER, FRAME_HEADER_LENGTH, FrameHeader, FrameType, SASL_HEADER, put_frame,
};
use fieldpost_amqp::message::{Message, Properties, put_map, put_properties, put_value, section};
use fieldpost_amqp::performative::{
    Attach, Begin, DeliveryState, Disposition, Flow, Open, Performative, RcvSettleMode, Role,
    SndSettleMode, Source, Target, Transfer,
};
use fieldpost_amqp::sasl::{Plain, SaslCode, SaslFrame, mechanism};
use fieldpost_amqp::value::ValueRef;
use fieldpost_hub::clock::ManualClock;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::super::serve;
use super::peer::nudge;
use crate::context::{ConnectionContext, Drain, Transport};
use crate::testing::TestHub;

/// The address as .NET writes it: absolute.
const NET_FEEDBACK: &str = "amqps://localhost:5671/messages/serviceBound/feedback";

/// The client's end of one connection.
pub(super) struct Wire {
    stream: DuplexStream,
    input: BytesMut,
    clock: Arc<ManualClock>,
    pub(super) drain: Drain,
}

impl Wire {
    /// A connection on which nothing was said.
    fn new(hub: &TestHub) -> Self {
        let (near, far) = duplex(64 * 1024);
        let (context, drain) = ConnectionContext::of_test(hub.hub.clone(), Transport::Tls);
        tokio::spawn(serve(far, context));
        Self {
            stream: near,
            input: BytesMut::new(),
            clock: Arc::clone(&hub.clock),
            drain,
        }
    }

    /// .NET's service client up to its first session: it sends no SASL header at all, and puts its
    /// token on links whose names and addresses are random.
    pub(super) async fn net_iot(hub: &TestHub) -> Self {
        let mut wire = Self::new(hub);
        wire.say(&AMQP_HEADER).await;
        assert_eq!(wire.take(8).await[..], AMQP_HEADER);
        wire.open().await;
        let (requests, answers) = (0, 1);
        wire.attach(Attach {
            name: "8a0d6a2e".to_owned(),
            handle: requests,
            role: Role::Sender,
            source: Some(Source::from_address("2f3b")),
            target: Some(Target::to("$cbs")),
            initial_delivery_count: Some(0),
            ..Attach::default()
        })
        .await;
        wire.attach(Attach {
            name: "77cd91b0".to_owned(),
            handle: answers,
            role: Role::Receiver,
            source: Some(Source::from_address("$cbs")),
            target: Some(Target::to("d7e1")),
            ..Attach::default()
        })
        .await;
        wire.credit(answers, 50).await;
        let token = hub.policy_token("service");
        wire.put_token(requests, "1", &token).await;
        wire
    }

    /// Puts a token as .NET does: a message id that is a string, its own word for the type, and the
    /// endpoint's address for a name.
    pub(super) async fn put_token(&mut self, handle: u32, id: &str, token: &str) {
        let mut request = BytesMut::new();
        put_properties(
            &mut request,
            &Properties {
                message_id: Some(ValueRef::String(id)),
                reply_to: Some(ValueRef::String("d7e1")),
                ..Properties::default()
            },
        );
        put_map(&mut request, section::APPLICATION_PROPERTIES, |e| {
            for (name, value) in [
                ("operation", "put-token"),
                ("type", "azure-devices.net:sastoken"),
                ("name", "amqps://localhost:5671/"),
            ] {
                e.string(name);
                e.string(value);
            }
        });
        put_value(&mut request, |e| e.string(token));
        let delivery_id = id.parse().unwrap();
        self.transfer(handle, delivery_id, &request).await;
        let answer = loop {
            let (performative, payload) = self.hear().await;
            if let Performative::Transfer(_) = performative {
                break payload;
            }
        };
        let message = Message::parse(&answer).unwrap();
        let correlation = message.properties().unwrap().correlation_id;
        assert_eq!(correlation, Some(ValueRef::String(id)));
        let status = message.application_properties.unwrap().get("status-code");
        assert_eq!(status.unwrap(), Some(ValueRef::Int(200)));
    }

    /// Java's and C's service clients up to their first session: SASL PLAIN with the policy's name
    /// at the hub and a token for a password, good for so many seconds.
    pub(super) async fn plain(hub: &TestHub, life_s: i64) -> Self {
        let mut wire = Self::new(hub);
        wire.say(&SASL_HEADER).await;
        assert_eq!(wire.take(8).await[..], SASL_HEADER);
        let SaslFrame::Mechanisms(offered) = wire.sasl_frame().await else {
            panic!("mechanisms come first")
        };
        assert!(
            offered
                .mechanisms
                .iter()
                .any(|name| *name == mechanism::PLAIN)
        );
        let plain = Plain {
            authzid: "",
            authcid: "service@sas.root.hub",
            password: &hub.policy_token_for("service", life_s),
        };
        let init = fieldpost_amqp::sasl::SaslInit {
            mechanism: Symbol::from_static(mechanism::PLAIN),
            initial_response: Some(fieldpost_amqp::sasl::Secret(plain.to_initial_response())),
            hostname: None,
        };
        let mut frame = BytesMut::new();
        put_frame(&mut frame, FrameType::Sasl, 0, |e| {
            init.encode(e);
        });
        wire.say(&frame).await;
        let SaslFrame::Outcome(outcome) = wire.sasl_frame().await else {
            panic!("the outcome comes next")
        };
        assert_eq!(outcome.code, SaslCode::Ok);
        wire.say(&AMQP_HEADER).await;
        assert_eq!(wire.take(8).await[..], AMQP_HEADER);
        wire.open().await;
        wire
    }

    /// Opens the connection and one session, on which everything happens.
    async fn open(&mut self) {
        let open = Open {
            container_id: "client".to_owned(),
            hostname: Some("localhost".to_owned()),
            ..Open::default()
        };
        self.send(&Performative::Open(Box::new(open))).await;
        assert!(matches!(self.hear().await.0, Performative::Open(_)));
        let begin = Begin {
            next_outgoing_id: 1,
            incoming_window: 5000,
            outgoing_window: 5000,
            ..Begin::default()
        };
        self.send(&Performative::Begin(Box::new(begin))).await;
        assert!(matches!(self.hear().await.0, Performative::Begin(_)));
    }

    /// Attaches a link and waits for the answer.
    pub(super) async fn attach(&mut self, attach: Attach) -> Attach {
        let name = attach.name.clone();
        self.send(&Performative::Attach(Box::new(attach))).await;
        loop {
            match self.hear().await.0 {
                Performative::Attach(answer) if answer.name == name => return *answer,
                // Credit for another link.
                Performative::Flow(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Attaches a link that sends to `address`, and waits for credit as clients do.
    pub(super) async fn sender(&mut self, name: &str, address: &str) -> u32 {
        let handle = 7;
        let answer = self
            .attach(Attach {
                name: name.to_owned(),
                handle,
                role: Role::Sender,
                source: Some(Source::from_address(address)),
                target: Some(Target::to(address)),
                initial_delivery_count: Some(0),
                ..Attach::default()
            })
            .await;
        assert!(answer.target.is_some(), "refused: {:?}", self.hear().await);
        match self.hear().await.0 {
            Performative::Flow(flow) => {
                assert_eq!(flow.handle, Some(answer.handle));
                assert!(flow.link_credit.is_some_and(|credit| credit >= 100));
            }
            other => panic!("{other:?}"),
        }
        handle
    }

    /// Grants credit on a link that receives.
    pub(super) async fn credit(&mut self, handle: u32, credit: u32) {
        let flow = Flow {
            next_incoming_id: Some(1),
            incoming_window: 5000,
            next_outgoing_id: 1,
            outgoing_window: 5000,
            handle: Some(handle),
            delivery_count: Some(0),
            link_credit: Some(credit),
            ..Flow::default()
        };
        self.send(&Performative::Flow(Box::new(flow))).await;
    }

    /// Attaches for feedback as .NET does, which settles second, and grants so many deliveries.
    pub(super) async fn net_iot_feedback(&mut self, credit: u32) -> u32 {
        let handle = 9;
        let answer = self
            .attach(Attach {
                name: "feedback".to_owned(),
                handle,
                role: Role::Receiver,
                snd_settle_mode: SndSettleMode::Mixed,
                rcv_settle_mode: RcvSettleMode::Second,
                source: Some(Source::from_address(NET_FEEDBACK)),
                target: Some(Target::to("amqps://localhost:5671/")),
                ..Attach::default()
            })
            .await;
        assert_eq!(answer.rcv_settle_mode, RcvSettleMode::Second);
        assert!(answer.source.is_some());
        self.credit(handle, credit).await;
        handle
    }

    /// The next feedback message: its delivery id, tag and bytes.
    pub(super) async fn feedback(&mut self) -> (u32, Vec<u8>, Vec<u8>) {
        loop {
            if let (Performative::Transfer(transfer), payload) = self.hear_later().await {
                assert_eq!(transfer.settled, Some(false));
                let tag = transfer.delivery_tag.unwrap().as_bytes().to_vec();
                return (transfer.delivery_id.unwrap(), tag, payload);
            }
        }
    }

    /// Says what becomes of a delivery, and whether that settles it: .NET waits for the hub to do so.
    pub(super) async fn judge(&mut self, delivery_id: u32, state: DeliveryState, settled: bool) {
        let disposition = Disposition {
            role: Role::Receiver,
            first: delivery_id,
            last: None,
            settled,
            state: Some(state),
            batchable: true,
        };
        self.send(&Performative::Disposition(disposition)).await;
    }

    /// The next thing that the hub says of a delivery.
    pub(super) async fn disposition(&mut self) -> Disposition {
        loop {
            if let Performative::Disposition(disposition) = self.hear().await.0 {
                return disposition;
            }
        }
    }

    /// Sends a message in one frame.
    pub(super) async fn transfer(&mut self, handle: u32, delivery_id: u32, message: &[u8]) {
        let transfer = Transfer {
            handle,
            delivery_id: Some(delivery_id),
            delivery_tag: fieldpost_amqp::performative::DeliveryTag::new(
                &delivery_id.to_be_bytes(),
            ),
            message_format: Some(0),
            settled: Some(false),
            ..Transfer::default()
        };
        let mut frame = BytesMut::new();
        put_frame(&mut frame, FrameType::Amqp, 0, |e| {
            transfer.encode(e);
            e.raw(message);
        });
        self.say(&frame).await;
    }

    /// Sends a frame.
    pub(super) async fn send(&mut self, performative: &Performative) {
        let mut frame = BytesMut::new();
        put_frame(&mut frame, FrameType::Amqp, 0, |e| performative.encode(e));
        self.say(&frame).await;
    }

    /// Sends these bytes.
    pub(super) async fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next frame that says something, and its payload.
    pub(super) async fn hear(&mut self) -> (Performative, Vec<u8>) {
        loop {
            let (kind, body) = self.frame().await;
            assert_eq!(kind, FrameType::Amqp);
            if !body.is_empty() {
                let (performative, payload) = Performative::decode(&body).unwrap();
                return (performative, payload.to_vec());
            }
        }
    }

    /// As [`hear`](Self::hear), while time passes.
    pub(super) async fn hear_later(&mut self) -> (Performative, Vec<u8>) {
        let clock = Arc::clone(&self.clock);
        loop {
            tokio::select! {
                biased;
                () = self.fill(1) => return self.hear().await,
                () = nudge() => clock.advance(Duration::from_secs(1)),
            }
        }
    }

    async fn sasl_frame(&mut self) -> SaslFrame {
        let (kind, body) = self.frame().await;
        assert_eq!(kind, FrameType::Sasl);
        SaslFrame::decode(&body).unwrap()
    }

    async fn frame(&mut self) -> (FrameType, BytesMut) {
        self.fill(FRAME_HEADER_LENGTH).await;
        let header = FrameHeader::parse(*self.input.first_chunk().unwrap(), usize::MAX).unwrap();
        let mut frame = self.take(header.size).await;
        frame.advance(header.body);
        (header.frame_type, frame)
    }

    async fn take(&mut self, count: usize) -> BytesMut {
        self.fill(count).await;
        self.input.split_to(count)
    }

    /// Reads until there are so many bytes. May be dropped at an await.
    async fn fill(&mut self, count: usize) {
        while self.input.len() < count {
            let read = self.stream.read_buf(&mut self.input);
            let watchdog = tokio::time::timeout(Duration::from_secs(20), read);
            let read = watchdog.await.expect("the hub answers").unwrap();
            assert!(read > 0, "the hub has closed the connection");
        }
    }
}
