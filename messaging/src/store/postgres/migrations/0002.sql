-- What two wake targets share that wake the same app on the same phone: the later one has it.
ALTER TABLE devices ADD wake_place bytea;
CREATE INDEX devices_wake_place ON devices (wake_place) WHERE wake_place IS NOT NULL;
