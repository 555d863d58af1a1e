-- capture --
-- One whose address is known merges into its row, by a trigger, and is then not inserted: "INSERT 0 0".
INSERT INTO marketing.leads (email, company_name) VALUES ($1, $2)

-- captured --
-- With app.user_email set to the address, which for this one statement shows its row to anon.
SELECT id, source FROM marketing.leads WHERE email = $1 AND deleted_at IS NULL
