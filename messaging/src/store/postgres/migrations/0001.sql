-- Whose database this is: nodes with other secrets are refused.
CREATE TABLE cluster (
    id bytea NOT NULL,
    one boolean PRIMARY KEY DEFAULT true CHECK (one)
);

-- Accounts, devices and prekeys: the directory.

CREATE TABLE accounts (
    account uuid PRIMARY KEY,
    handle text COLLATE "C" NOT NULL UNIQUE,
    account_key bytea NOT NULL,
    device_list bytea NOT NULL,
    list_signature bytea NOT NULL,
    -- The highest number that a device of it ever had.
    last_device int NOT NULL,
    delivery_receipts boolean NOT NULL DEFAULT true,
    -- 0: contacts, 1: everyone, 2: nobody.
    presence smallint NOT NULL DEFAULT 0
);

CREATE TABLE devices (
    account uuid NOT NULL,
    device int NOT NULL,
    reg_id int NOT NULL,
    token_hash bytea NOT NULL,
    -- Of the token that takes the place of the other once it is used.
    next_token_hash bytea,
    -- Sealed: for the account's devices alone.
    name bytea NOT NULL,
    added_at bigint NOT NULL,
    -- Where it is woken, and when it said so.
    wake_target bytea,
    wake_set_at bigint,
    PRIMARY KEY (account, device)
);

CREATE INDEX devices_wakeable ON devices (account, device) WHERE wake_target IS NOT NULL;

-- One-time keys; the lowest position goes first.
CREATE TABLE prekeys (
    account uuid NOT NULL,
    device int NOT NULL,
    position bigint NOT NULL,
    suite smallint NOT NULL,
    key bytea NOT NULL,
    signature bytea NOT NULL,
    PRIMARY KEY (account, device, position)
);

CREATE TABLE fallback_prekeys (
    account uuid NOT NULL,
    device int NOT NULL,
    suite smallint NOT NULL,
    key bytea NOT NULL,
    signature bytea NOT NULL,
    PRIMARY KEY (account, device)
);

-- One-time keys that were handed out, so that a repeated upload does not bring them back.
CREATE TABLE used_prekeys (
    account uuid NOT NULL,
    device int NOT NULL,
    key bytea NOT NULL,
    used_at bigint NOT NULL,
    PRIMARY KEY (account, device, key)
);
CREATE INDEX used_prekeys_age ON used_prekeys USING brin (used_at);

CREATE TABLE invites (
    number bytea PRIMARY KEY,
    expires_at bigint NOT NULL,
    account uuid NOT NULL
);

-- Who has written to whom.
CREATE TABLE pairs (
    account uuid NOT NULL,
    peer uuid NOT NULL,
    PRIMARY KEY (account, peer)
);
CREATE INDEX pairs_peer ON pairs (peer, account);

CREATE TABLE blocks (
    account uuid NOT NULL,
    peer uuid NOT NULL,
    PRIMARY KEY (account, peer)
);

-- Accounts (device 0) and devices that are gone, until everything of them is erased.
CREATE TABLE erasing (
    account uuid NOT NULL,
    device int NOT NULL,
    PRIMARY KEY (account, device)
);

-- Mailboxes. Their rows change at every message and keep their size, so room beside them keeps the change in the page.

CREATE TABLE mailboxes (
    account uuid NOT NULL,
    device int NOT NULL,
    epoch bigint NOT NULL,
    generation bigint NOT NULL DEFAULT 0,
    opened_at bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account, device)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE lanes (
    account uuid NOT NULL,
    device int NOT NULL,
    -- 0: normal, 1: urgent.
    lane smallint NOT NULL,
    last bigint NOT NULL DEFAULT 0,
    acked bigint NOT NULL DEFAULT 0,
    swept bigint NOT NULL DEFAULT 0,
    bytes_given bigint NOT NULL DEFAULT 0,
    bytes_acked bigint NOT NULL DEFAULT 0,
    -- First and last of each span acked out of order.
    ranges bigint[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (account, device, lane)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);

-- The messages that wait. Hashed into parts, so that each is vacuumed apart and its index stays shallow.
CREATE TABLE messages (
    account uuid NOT NULL,
    device int NOT NULL,
    lane smallint NOT NULL,
    seq bigint NOT NULL,
    -- The lane's bytes_given with this one.
    bytes_given bigint NOT NULL,
    expires_at bigint NOT NULL,
    server_ts bigint NOT NULL,
    class smallint NOT NULL,
    -- Whoever is told when this is acked: none for what the server makes.
    sender uuid,
    msg_id bytea NOT NULL,
    envelope bytea NOT NULL,
    PRIMARY KEY (account, device, lane, seq)
) PARTITION BY HASH (account);

-- That a message was taken, for as long as a repeat of it counts as the same.
CREATE TABLE sends (
    account uuid NOT NULL,
    device int NOT NULL,
    msg_id uuid NOT NULL,
    content_hash bytea NOT NULL,
    server_ts bigint NOT NULL,
    PRIMARY KEY (account, device, msg_id)
) PARTITION BY HASH (account);

DO $$
BEGIN
    FOR part IN 0..7 LOOP
        EXECUTE format('CREATE TABLE messages_%s PARTITION OF messages FOR VALUES WITH (MODULUS 8, REMAINDER %s)
            WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1,
                  autovacuum_vacuum_cost_delay = 0)', part, part);
        -- Ciphertext does not compress.
        EXECUTE format('ALTER TABLE messages_%s ALTER envelope SET STORAGE EXTERNAL', part);
        EXECUTE format('CREATE TABLE sends_%s PARTITION OF sends FOR VALUES WITH (MODULUS 8, REMAINDER %s)
            WITH (autovacuum_vacuum_scale_factor = 0.05)', part, part);
    END LOOP;
END
$$;
CREATE INDEX sends_age ON sends USING brin (server_ts);

-- Where the message stands that a later one with the same key replaces. sender_device 0: made by the server.
CREATE TABLE coalesced (
    account uuid NOT NULL,
    device int NOT NULL,
    lane smallint NOT NULL,
    sender uuid NOT NULL,
    sender_device int NOT NULL,
    key bytea NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (account, device, lane, sender, sender_device, key)
);

-- When the next full round of sweeping is due: one node at a time makes it.
CREATE TABLE sweeps (
    next_round bigint NOT NULL
);
INSERT INTO sweeps VALUES (0);
