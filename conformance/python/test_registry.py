"""The device registry through the unmodified Python service SDK."""

import base64
import uuid

import msrest.exceptions
import pytest
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import ExportImportDevice, AuthenticationMechanism, SymmetricKey


@pytest.fixture
def registry(hub):
    return IoTHubRegistryManager.from_connection_string(hub.service_string())


@pytest.fixture
def device_id():
    return f"reg-{uuid.uuid4().hex[:12]}"


def refused(status, code):
    class Refused:
        def __enter__(self):
            self.raises = pytest.raises(msrest.exceptions.HttpOperationError)
            self.info = self.raises.__enter__()
            return self.info

        def __exit__(self, *args):
            swallowed = self.raises.__exit__(*args)
            assert self.info.value.response.status_code == status
            assert code in self.info.value.response.text
            return swallowed

    return Refused()


def test_a_device_is_created_read_changed_and_deleted(registry, device_id):
    created = registry.create_device_with_sas(device_id, None, None, "enabled")
    keys = created.authentication.symmetric_key
    assert len(base64.b64decode(keys.primary_key)) == 32
    assert len(base64.b64decode(keys.secondary_key)) == 32
    assert keys.primary_key != keys.secondary_key
    assert created.status == "enabled" and created.connection_state == "Disconnected"
    assert created.generation_id and created.etag
    assert created.cloud_to_device_message_count == 0

    read = registry.get_device(device_id)
    assert read.as_dict() == created.as_dict()

    key = base64.b64encode(b"0" * 32).decode()
    updated = registry.update_device_with_sas(
        device_id, created.etag, key, key, "disabled", status_reason="à l'arrêt"
    )
    assert updated.status == "disabled" and updated.etag != created.etag
    assert updated.status_reason == "à l'arrêt"
    assert updated.generation_id == created.generation_id
    assert registry.get_device(device_id).authentication.symmetric_key.primary_key == key

    with refused(412, "PreconditionFailed"):
        registry.update_device_with_sas(device_id, created.etag, key, key, "enabled")
    with refused(412, "PreconditionFailed"):
        registry.delete_device(device_id, created.etag)
    registry.delete_device(device_id, updated.etag)
    with refused(404, "DeviceNotFound"):
        registry.get_device(device_id)
    with refused(404, "DeviceNotFound"):
        registry.delete_device(device_id)

    again = registry.create_device_with_sas(device_id, None, None, "enabled")
    assert again.generation_id != created.generation_id
    registry.delete_device(device_id)


def test_a_device_that_exists_is_not_created_again(registry, device_id):
    registry.create_device_with_sas(device_id, None, None, "enabled")
    with refused(409, "DeviceAlreadyExists"):
        registry.create_device_with_sas(device_id, None, None, "enabled")
    registry.delete_device(device_id)


def test_x509_identities_are_kept(registry, device_id):
    thumbprint = "A" * 40
    created = registry.create_device_with_x509(device_id, thumbprint, thumbprint, "enabled")
    assert created.authentication.type == "selfSigned"
    assert created.authentication.x509_thumbprint.primary_thumbprint == thumbprint
    updated = registry.update_device_with_certificate_authority(device_id, created.etag, "enabled")
    assert updated.authentication.type == "certificateAuthority"
    registry.delete_device(device_id)


@pytest.mark.parametrize("bad", ["with blank", "L" * 129, "a/b", "é"])
def test_ids_outside_the_rules_are_refused(registry, bad):
    with pytest.raises(msrest.exceptions.HttpOperationError) as info:
        registry.create_device_with_sas(bad, None, None, "enabled")
    assert info.value.response.status_code in (400, 404)


def test_many_devices_are_changed_at_once_with_an_error_for_each_bad_one(registry):
    stem = f"bulk-{uuid.uuid4().hex[:8]}"

    def item(number, mode):
        return ExportImportDevice(
            id=f"{stem}-{number}",
            import_mode=mode,
            status="enabled",
            authentication=AuthenticationMechanism(type="sas", symmetric_key=SymmetricKey()),
        )

    before = registry.get_device_registry_statistics()
    result = registry.bulk_create_or_update_devices([item(n, "create") for n in range(100)])
    assert result.is_successful and not result.errors
    result = registry.bulk_create_or_update_devices([item(n, "create") for n in range(98, 102)])
    assert not result.is_successful
    assert {error.device_id for error in result.errors} == {f"{stem}-98", f"{stem}-99"}
    assert {error.error_code for error in result.errors} == {"DeviceAlreadyExists"}
    after = registry.get_device_registry_statistics()
    assert after.total_device_count - before.total_device_count == 102
    assert after.enabled_device_count - before.enabled_device_count == 102
    listed = {device.device_id for device in registry.get_devices(1000)}
    assert {f"{stem}-{n}" for n in range(102)} <= listed
    for start in (0, 100):
        result = registry.bulk_create_or_update_devices(
            [item(n, "delete") for n in range(start, min(start + 100, 102))]
        )
        assert result.is_successful
    assert (
        registry.get_device_registry_statistics().total_device_count == before.total_device_count
    )


def test_listing_stops_at_the_number_asked_for(registry):
    stem = uuid.uuid4().hex[:8]
    for n in range(3):
        registry.create_device_with_sas(f"{stem}-{n}", None, None, "enabled")
    assert len(registry.get_devices(2)) == 2
    for n in range(3):
        registry.delete_device(f"{stem}-{n}")


def test_a_device_shows_as_connected_while_it_is(hub, registry, device):
    from azure.iot.device import IoTHubDeviceClient

    client = IoTHubDeviceClient.create_from_connection_string(
        device.connection_string, server_verification_cert=hub.ca.read_text()
    )
    client.connect()
    assert registry.get_device(device.id).connection_state == "Connected"
    assert registry.get_service_statistics().connected_device_count >= 1
    client.shutdown()


def test_rights_of_the_policies(hub, device_id):
    reader = IoTHubRegistryManager.from_connection_string(hub.service_string("registryRead"))
    reader.get_devices(1)
    with refused(401, "IotHubUnauthorizedAccess"):
        reader.create_device_with_sas(device_id, None, None, "enabled")
    for policy in ("service", "device"):
        other = IoTHubRegistryManager.from_connection_string(hub.service_string(policy))
        with refused(401, "IotHubUnauthorizedAccess"):
            other.get_devices(1)
    writer = IoTHubRegistryManager.from_connection_string(hub.service_string("registryReadWrite"))
    writer.create_device_with_sas(device_id, None, None, "enabled")
    writer.delete_device(device_id)
