-- Groups, who is in them, and what is sent to them: each body once, with a row in `messages` for each device it is for.

CREATE TABLE groups (
    id uuid PRIMARY KEY,
    state bytea NOT NULL,
    -- The change that made it.
    change bytea NOT NULL,
    -- BLAKE3 of the state.
    hash bytea NOT NULL,
    epoch bigint NOT NULL,
    receipts boolean NOT NULL,
    -- The last place given in the conversation.
    last bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

CREATE TABLE group_changes (
    id uuid NOT NULL,
    epoch bigint NOT NULL,
    change bytea NOT NULL,
    PRIMARY KEY (id, epoch)
);

CREATE TABLE group_members (
    account uuid NOT NULL,
    id uuid NOT NULL,
    -- Everything up to there has come to a device, and was seen.
    got bigint NOT NULL DEFAULT 0,
    seen bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account, id)
) WITH (fillfactor = 70);
CREATE INDEX group_members_of ON group_members (id, account);

-- The last sets of devices that messages were for, so that a sender with an older one is told whose have changed.
CREATE TABLE group_audiences (
    id uuid NOT NULL,
    hash bytea NOT NULL,
    -- The conversation's place at which it was first seen.
    seen_at bigint NOT NULL,
    -- Account and eight bytes of a hash of its devices, for each member.
    members bytea NOT NULL,
    PRIMARY KEY (id, hash)
);

CREATE TABLE group_bodies (
    id uuid NOT NULL,
    conv_seq bigint NOT NULL,
    -- Rows that stand for it.
    rows int NOT NULL,
    envelope bytea NOT NULL,
    PRIMARY KEY (id, conv_seq)
) WITH (autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE group_bodies ALTER envelope SET STORAGE EXTERNAL;

-- The body that a row stands for; its own envelope is empty then.
ALTER TABLE messages ADD body_group uuid, ADD body_seq bigint;

ALTER TABLE sends ADD conv_seq bigint NOT NULL DEFAULT 0;
