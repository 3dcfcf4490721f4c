-- Addresses that nothing is mailed to any more, a list a tenant.
SET LOCAL ROLE carillon_owner;

CREATE TABLE suppressed_addresses (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    address text COLLATE "C" NOT NULL CHECK (length(address) <= 254 AND address = lower(address)),
    id uuid NOT NULL,
    reason text NOT NULL CHECK (reason IN ('bounce', 'complaint')),
    delivery_id uuid NOT NULL,
    message_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, address)
);
COMMENT ON TABLE suppressed_addresses IS 'Addresses that bounced for good or complained: a delivery leaves them out until a caller takes them off the list.';
COMMENT ON COLUMN suppressed_addresses.tenant_id IS 'The tenant.';
COMMENT ON COLUMN suppressed_addresses.address IS 'The address in lower case, by which recipients are compared.';
COMMENT ON COLUMN suppressed_addresses.id IS 'UUIDv7; what the audit trail names.';
COMMENT ON COLUMN suppressed_addresses.reason IS 'bounce: its mail server refused it for good; complaint: its owner called a mail unwanted.';
COMMENT ON COLUMN suppressed_addresses.delivery_id IS 'The delivery that it was learned from; retention may have deleted it.';
COMMENT ON COLUMN suppressed_addresses.message_id IS 'The mail service''s id of that message.';
COMMENT ON COLUMN suppressed_addresses.created_at IS 'When it was put on the list.';
CALL wall('suppressed_addresses');

ALTER TABLE deliveries ADD COLUMN suppressed text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN deliveries.suppressed IS 'Recipients of an email that its last attempt left out, in lower case: they were suppressed when it began.';

RESET ROLE;
