//! Writing values.

use bytes::{BufMut, BytesMut};

use super::{Array, Descriptor, DescriptorRef, Map, Symbol, Value, ValueRef};

/// Appends encoded values to a buffer, each in its shortest form.
///
/// Compound values are written by closures, which keeps size and count right by construction:
///
/// ```
/// use bytes::BytesMut;
/// use fieldpost_amqp::Encoder;
///
/// let mut buffer = BytesMut::new();
/// Encoder::new(&mut buffer).list(|e| {
///     e.uint(1);
///     e.string("two");
/// });
/// assert_eq!(&buffer[..], b"\xc0\x08\x02\x52\x01\xa1\x03two");
/// ```
#[derive(Debug)]
pub struct Encoder<'a> {
    buffer: &'a mut BytesMut,
    /// Values written so far; the count of the compound value being written.
    count: u32,
}

impl<'a> Encoder<'a> {
    /// An encoder that appends to `buffer`.
    #[must_use]
    pub fn new(buffer: &'a mut BytesMut) -> Self {
        Self { buffer, count: 0 }
    }

    /// `null`
    pub fn null(&mut self) {
        self.begin(0x40);
    }

    /// `boolean`
    pub fn bool(&mut self, value: bool) {
        self.begin(if value { 0x41 } else { 0x42 });
    }

    /// `ubyte`
    pub fn ubyte(&mut self, value: u8) {
        self.begin(0x50);
        self.buffer.put_u8(value);
    }

    /// `ushort`
    pub fn ushort(&mut self, value: u16) {
        self.begin(0x60);
        self.buffer.put_u16(value);
    }

    /// `uint`
    pub fn uint(&mut self, value: u32) {
        match u8::try_from(value) {
            Ok(0) => self.begin(0x43),
            Ok(small) => {
                self.begin(0x52);
                self.buffer.put_u8(small);
            }
            Err(_) => {
                self.begin(0x70);
                self.buffer.put_u32(value);
            }
        }
    }

    /// `ulong`
    pub fn ulong(&mut self, value: u64) {
        match u8::try_from(value) {
            Ok(0) => self.begin(0x44),
            Ok(small) => {
                self.begin(0x53);
                self.buffer.put_u8(small);
            }
            Err(_) => {
                self.begin(0x80);
                self.buffer.put_u64(value);
            }
        }
    }

    /// `byte`
    pub fn byte(&mut self, value: i8) {
        self.begin(0x51);
        self.buffer.put_i8(value);
    }

    /// `short`
    pub fn short(&mut self, value: i16) {
        self.begin(0x61);
        self.buffer.put_i16(value);
    }

    /// `int`
    pub fn int(&mut self, value: i32) {
        if let Ok(small) = i8::try_from(value) {
            self.begin(0x54);
            self.buffer.put_i8(small);
        } else {
            self.begin(0x71);
            self.buffer.put_i32(value);
        }
    }

    /// `long`
    pub fn long(&mut self, value: i64) {
        if let Ok(small) = i8::try_from(value) {
            self.begin(0x55);
            self.buffer.put_i8(small);
        } else {
            self.begin(0x81);
            self.buffer.put_i64(value);
        }
    }

    /// `float`
    pub fn float(&mut self, value: f32) {
        self.begin(0x72);
        self.buffer.put_f32(value);
    }

    /// `double`
    pub fn double(&mut self, value: f64) {
        self.begin(0x82);
        self.buffer.put_f64(value);
    }

    /// `char`
    pub fn char(&mut self, value: char) {
        self.begin(0x73);
        self.buffer.put_u32(value.into());
    }

    /// `timestamp`, in milliseconds since the Unix epoch
    pub fn timestamp(&mut self, ms: i64) {
        self.begin(0x83);
        self.buffer.put_i64(ms);
    }

    /// `uuid`, in network byte order
    pub fn uuid(&mut self, value: &[u8; 16]) {
        self.begin(0x98);
        self.buffer.put_slice(value);
    }

    /// `binary`
    pub fn binary(&mut self, value: &[u8]) {
        self.variable(0xa0, value);
    }

    /// `string`
    pub fn string(&mut self, value: &str) {
        self.variable(0xa1, value.as_bytes());
    }

    /// `symbol`
    pub fn symbol(&mut self, value: &str) {
        self.variable(0xa3, value.as_bytes());
    }

    /// A list of what `contents` writes. Never the `list0` form: some peers cannot read it.
    pub fn list(&mut self, contents: impl FnOnce(&mut Encoder<'_>)) {
        self.compound(0xc0, contents);
    }

    /// A map of what `contents` writes: key, value, key, value and so on.
    pub fn map(&mut self, contents: impl FnOnce(&mut Encoder<'_>)) {
        self.compound(0xc1, contents);
    }

    /// A value described by a number; `value` writes exactly one value.
    pub fn described(&mut self, code: u64, value: impl FnOnce(&mut Encoder<'_>)) {
        self.begin(0x00);
        self.inner(|e| {
            e.ulong(code);
            value(e);
        });
    }

    /// A value described by a symbol; `value` writes exactly one value.
    pub fn described_name(&mut self, name: &str, value: impl FnOnce(&mut Encoder<'_>)) {
        self.begin(0x00);
        self.inner(|e| {
            e.symbol(name);
            value(e);
        });
    }

    /// An array of symbols, also when there is only one: the form that every peer reads.
    pub fn symbols(&mut self, symbols: &[Symbol]) {
        self.compound(0xe0, |e| {
            e.buffer.put_u8(0xb3);
            for symbol in symbols {
                e.count += 1;
                e.sized32(symbol.as_str().as_bytes());
            }
        });
    }

    /// An array of strings.
    pub fn strings<'s>(&mut self, strings: impl IntoIterator<Item = &'s str>) {
        self.compound(0xe0, |e| {
            e.buffer.put_u8(0xb1);
            for string in strings {
                e.count += 1;
                e.sized32(string.as_bytes());
            }
        });
    }

    /// One value that is encoded already.
    pub fn raw(&mut self, encoded: &[u8]) {
        self.raw_values(encoded, 1);
    }

    /// `count` values that are encoded already, such as the entries of a map.
    pub fn raw_values(&mut self, encoded: &[u8], count: u32) {
        self.count += count;
        self.buffer.put_slice(encoded);
    }

    /// An owned value.
    pub fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.null(),
            Value::Bool(v) => self.bool(*v),
            Value::UByte(v) => self.ubyte(*v),
            Value::UShort(v) => self.ushort(*v),
            Value::UInt(v) => self.uint(*v),
            Value::ULong(v) => self.ulong(*v),
            Value::Byte(v) => self.byte(*v),
            Value::Short(v) => self.short(*v),
            Value::Int(v) => self.int(*v),
            Value::Long(v) => self.long(*v),
            Value::Float(v) => self.float(*v),
            Value::Double(v) => self.double(*v),
            Value::Decimal32(v) => self.fixed(0x74, v),
            Value::Decimal64(v) => self.fixed(0x84, v),
            Value::Decimal128(v) => self.fixed(0x94, v),
            Value::Char(v) => self.char(*v),
            Value::Timestamp(v) => self.timestamp(*v),
            Value::Uuid(v) => self.uuid(v),
            Value::Binary(v) => self.binary(v),
            Value::String(v) => self.string(v),
            Value::Symbol(v) => self.symbol(v.as_str()),
            Value::List(values) => self.list(|e| e.values(values)),
            Value::Map(map) => self.map_value(map),
            Value::Array(array) => self.array(array),
            Value::Described(described) => {
                self.begin(0x00);
                self.inner(|e| {
                    e.descriptor(&described.descriptor);
                    e.value(&described.value);
                });
            }
        }
    }

    /// An owned map.
    pub fn map_value(&mut self, map: &Map) {
        self.map(|e| e.entries(map));
    }

    /// A borrowed value, with the type that it had; what a compound value holds is copied as it is.
    pub fn value_ref(&mut self, value: &ValueRef<'_>) {
        match *value {
            ValueRef::Null => self.null(),
            ValueRef::Bool(v) => self.bool(v),
            ValueRef::UByte(v) => self.ubyte(v),
            ValueRef::UShort(v) => self.ushort(v),
            ValueRef::UInt(v) => self.uint(v),
            ValueRef::ULong(v) => self.ulong(v),
            ValueRef::Byte(v) => self.byte(v),
            ValueRef::Short(v) => self.short(v),
            ValueRef::Int(v) => self.int(v),
            ValueRef::Long(v) => self.long(v),
            ValueRef::Float(v) => self.float(v),
            ValueRef::Double(v) => self.double(v),
            ValueRef::Decimal32(v) => self.fixed(0x74, &v),
            ValueRef::Decimal64(v) => self.fixed(0x84, &v),
            ValueRef::Decimal128(v) => self.fixed(0x94, &v),
            ValueRef::Char(v) => self.char(v),
            ValueRef::Timestamp(v) => self.timestamp(v),
            ValueRef::Uuid(v) => self.uuid(&v),
            ValueRef::Binary(v) => self.binary(v),
            ValueRef::String(v) => self.string(v),
            ValueRef::Symbol(v) => self.symbol(v),
            ValueRef::List(list) => self.list(|e| e.raw_values(list.body(), list.len())),
            ValueRef::Map(map) => self.map(|e| e.raw_values(map.body(), map.len() * 2)),
            ValueRef::Array(array) => self.compound(0xe0, |e| {
                let (descriptor, element, body) = array.parts();
                if let Some(descriptor) = descriptor {
                    e.buffer.put_u8(0x00);
                    e.inner(|e| e.descriptor_ref(descriptor));
                }
                e.buffer.put_u8(element);
                e.raw_values(body, array.len());
            }),
            ValueRef::Described(described) => {
                self.begin(0x00);
                self.inner(|e| {
                    e.descriptor_ref(described.descriptor);
                    let (constructor, body) = described.parts();
                    e.begin(constructor);
                    e.buffer.put_slice(body);
                });
            }
        }
    }

    /// Where in the buffer the next value starts.
    pub(crate) fn position(&self) -> usize {
        self.buffer.len()
    }

    fn array(&mut self, array: &Array) {
        self.compound(0xe0, |e| {
            let Some(first) = array.values().first() else {
                e.buffer.put_u8(0x40);
                return;
            };
            if let Value::Described(described) = first {
                e.buffer.put_u8(0x00);
                e.inner(|e| e.descriptor(&described.descriptor));
                e.buffer.put_u8(wide_constructor(&described.value));
            } else {
                e.buffer.put_u8(wide_constructor(first));
            }
            for value in array.values() {
                e.count += 1;
                e.element(value);
            }
        });
    }

    /// The body of an array's element, in the form of [`wide_constructor`].
    fn element(&mut self, value: &Value) {
        match value {
            Value::Null => {}
            Value::Bool(v) => self.buffer.put_u8(u8::from(*v)),
            Value::UByte(v) => self.buffer.put_u8(*v),
            Value::UShort(v) => self.buffer.put_u16(*v),
            Value::UInt(v) => self.buffer.put_u32(*v),
            Value::ULong(v) => self.buffer.put_u64(*v),
            Value::Byte(v) => self.buffer.put_i8(*v),
            Value::Short(v) => self.buffer.put_i16(*v),
            Value::Int(v) => self.buffer.put_i32(*v),
            Value::Long(v) | Value::Timestamp(v) => self.buffer.put_i64(*v),
            Value::Float(v) => self.buffer.put_f32(*v),
            Value::Double(v) => self.buffer.put_f64(*v),
            Value::Decimal32(v) => self.buffer.put_slice(v),
            Value::Decimal64(v) => self.buffer.put_slice(v),
            Value::Decimal128(v) | Value::Uuid(v) => self.buffer.put_slice(v),
            Value::Char(v) => self.buffer.put_u32((*v).into()),
            Value::Binary(v) => self.sized32(v),
            Value::String(v) => self.sized32(v.as_bytes()),
            Value::Symbol(v) => self.sized32(v.as_str().as_bytes()),
            Value::List(values) => self.compound_element(|e| e.values(values)),
            Value::Map(map) => self.compound_element(|e| e.entries(map)),
            Value::Array(array) => {
                // The wide form of the same bytes: drop the constructor that `array` chose.
                let mut scratch = BytesMut::new();
                let mut encoder = Encoder::new(&mut scratch);
                encoder.array(array);
                let mut decoder = super::Decoder::new(&scratch);
                if let Ok(ValueRef::Array(inner)) = decoder.value() {
                    self.compound_element(|e| {
                        let (descriptor, element, body) = inner.parts();
                        if let Some(descriptor) = descriptor {
                            e.buffer.put_u8(0x00);
                            e.inner(|e| e.descriptor_ref(descriptor));
                        }
                        e.buffer.put_u8(element);
                        e.raw_values(body, inner.len());
                    });
                }
            }
            Value::Described(described) => self.element(&described.value),
        }
    }

    fn values(&mut self, values: &[Value]) {
        for value in values {
            self.value(value);
        }
    }

    fn entries(&mut self, map: &Map) {
        for (key, value) in &map.0 {
            self.value(key);
            self.value(value);
        }
    }

    fn descriptor(&mut self, descriptor: &Descriptor) {
        match descriptor {
            Descriptor::Code(code) => self.ulong(*code),
            Descriptor::Name(name) => self.symbol(name.as_str()),
        }
    }

    fn descriptor_ref(&mut self, descriptor: DescriptorRef<'_>) {
        match descriptor {
            DescriptorRef::Code(code) => self.ulong(code),
            DescriptorRef::Name(name) => self.symbol(name),
        }
    }

    /// Runs `write` without counting its values here.
    fn inner(&mut self, write: impl FnOnce(&mut Encoder<'_>)) -> u32 {
        let mut inner = Encoder::new(self.buffer);
        write(&mut inner);
        inner.count
    }

    /// Writes the 8-bit form and widens it afterwards in the rare case that it does not fit.
    fn compound(&mut self, constructor8: u8, contents: impl FnOnce(&mut Encoder<'_>)) {
        self.count += 1;
        let start = self.buffer.len();
        self.buffer.put_slice(&[constructor8, 0, 0]);
        let count = self.inner(contents);
        let end = self.buffer.len();
        let size = end - start - 2;
        if let (Ok(size), Ok(count)) = (u8::try_from(size), u8::try_from(count)) {
            overwrite(self.buffer, start + 1, &[size, count]);
        } else {
            self.buffer.put_bytes(0, 6);
            self.buffer.copy_within(start + 3..end, start + 9);
            overwrite(self.buffer, start, &[constructor8 | 0x10]);
            overwrite(self.buffer, start + 1, &length32(size + 3).to_be_bytes());
            overwrite(self.buffer, start + 5, &count.to_be_bytes());
        }
    }

    fn compound_element(&mut self, contents: impl FnOnce(&mut Encoder<'_>)) {
        let start = self.buffer.len();
        self.buffer.put_bytes(0, 8);
        let count = self.inner(contents);
        let size = self.buffer.len() - start - 4;
        overwrite(self.buffer, start, &length32(size).to_be_bytes());
        overwrite(self.buffer, start + 4, &count.to_be_bytes());
    }

    fn variable(&mut self, constructor8: u8, bytes: &[u8]) {
        if let Ok(size) = u8::try_from(bytes.len()) {
            self.begin(constructor8);
            self.buffer.put_u8(size);
            self.buffer.put_slice(bytes);
        } else {
            self.begin(constructor8 | 0x10);
            self.sized32(bytes);
        }
    }

    fn sized32(&mut self, bytes: &[u8]) {
        self.buffer.put_u32(length32(bytes.len()));
        self.buffer.put_slice(bytes);
    }

    fn fixed(&mut self, constructor: u8, bytes: &[u8]) {
        self.begin(constructor);
        self.buffer.put_slice(bytes);
    }

    fn begin(&mut self, constructor: u8) {
        self.count += 1;
        self.buffer.put_u8(constructor);
    }
}

/// The constructor that an array of such values has.
const fn wide_constructor(value: &Value) -> u8 {
    match value {
        Value::Null => 0x40,
        Value::Bool(_) => 0x56,
        Value::UByte(_) => 0x50,
        Value::UShort(_) => 0x60,
        Value::UInt(_) => 0x70,
        Value::ULong(_) => 0x80,
        Value::Byte(_) => 0x51,
        Value::Short(_) => 0x61,
        Value::Int(_) => 0x71,
        Value::Long(_) => 0x81,
        Value::Float(_) => 0x72,
        Value::Double(_) => 0x82,
        Value::Decimal32(_) => 0x74,
        Value::Decimal64(_) => 0x84,
        Value::Decimal128(_) => 0x94,
        Value::Char(_) => 0x73,
        Value::Timestamp(_) => 0x83,
        Value::Uuid(_) => 0x98,
        Value::Binary(_) => 0xb0,
        Value::String(_) => 0xb1,
        Value::Symbol(_) => 0xb3,
        Value::List(_) => 0xd0,
        Value::Map(_) => 0xd1,
        Value::Array(_) => 0xf0,
        Value::Described(_) => 0x00,
    }
}

pub(crate) fn overwrite(buffer: &mut BytesMut, at: usize, bytes: &[u8]) {
    if let Some(place) = buffer.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

pub(crate) fn length32(length: usize) -> u32 {
    u32::try_from(length).expect("what one buffer holds is far below 4 GiB")
}
