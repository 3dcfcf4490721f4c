-- Conditions that end a transaction where they do not hold, so that it can be sent whole, with its
-- commit, by a client that has not yet seen any answer of it.
SET LOCAL ROLE carillon_owner;

CREATE DOMAIN lease_held AS boolean CONSTRAINT stale_lease CHECK (VALUE IS TRUE);
COMMENT ON DOMAIN lease_held IS 'True: the writer''s fence is still the row''s. Anything else ends the transaction with the constraint stale_lease.';

CREATE DOMAIN look_stands AS boolean CONSTRAINT stale_look CHECK (VALUE IS TRUE);
COMMENT ON DOMAIN look_stands IS 'True: what was seen without a lock is still so. Anything else ends the transaction with the constraint stale_look.';

RESET ROLE;
